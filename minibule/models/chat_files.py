"""Tokenizer and chat template, from a Hugging Face folder or a GGUF file, and out again."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from minibule.errors import InputError
from minibule.files import existing_folder, native_parser, read_json, write_json
from minibule.models.gguf_file import Gguf, read_gguf
from minibule.models.gguf_read import gguf_config, gguf_special_ids, gguf_tokenizer, is_gguf
from minibule.text.chat import CHATML, Chat


def load_chat(path: str | Path) -> Chat:
    """The tokenizer and chat template of a Hugging Face folder or a GGUF file.

    Raises
    ------
    InputError
        If the tokenizer is missing or broken, or no end-of-turn token is known.
    """
    if is_gguf(path):
        return _gguf_chat(read_gguf(path))
    folder = existing_folder(path, "a Hugging Face model folder")
    file = folder / "tokenizer.json"
    read_json(file)  # for its errors: tokenizers' own do not name the file
    with native_parser(f"{file}: not a tokenizer that can be used"):
        tokenizer = Tokenizer.from_file(str(file))
    settings = _optional_json(folder / "tokenizer_config.json")
    texts = {
        name: text.get("content") if isinstance(text, dict) else text
        for name, text in settings.items()
        if name.endswith("_token")
    }
    special_texts = {name: text for name, text in texts.items() if isinstance(text, str)}
    eos = _stop_tokens(folder, tokenizer, special_texts)
    template = _template(folder, settings, tokenizer)
    size = _optional_json(folder / "config.json").get("vocab_size")
    vocab_size = size if type(size) is int else None
    return Chat(tokenizer, template, special_texts, eos, folder, vocab_size)


def save_chat(chat: Chat, folder: Path) -> None:
    """Write the tokenizer files of a Hugging Face folder."""
    chat.tokenizer.save(str(folder / "tokenizer.json"))
    settings = {**chat.special_texts, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat.template:
        settings["chat_template"] = chat.template
    write_json(folder / "tokenizer_config.json", settings)
    ids = {f"{name}_id": number for name, number in chat.special_ids.items()}
    write_json(folder / "generation_config.json", ids | {"eos_token_id": chat.end_of_turn})


def _gguf_chat(file: Gguf) -> Chat:
    tokenizer = gguf_tokenizer(file)
    ids = gguf_special_ids(file)
    special_texts = {name: str(tokenizer.id_to_token(number)) for name, number in ids.items()}
    if "eos_token" not in ids:
        raise InputError(
            f"{file.path}: no end-of-turn token. Expected tokenizer.ggml.eos_token_id."
        )
    template = file.get("tokenizer.chat_template")
    if not isinstance(template, str):
        template = _default_template(tokenizer)
    vocab_size = gguf_config(file).vocab_size
    return Chat(tokenizer, template, special_texts, [ids["eos_token"]], file.path, vocab_size)


def _default_template(tokenizer: Tokenizer) -> str:
    """ChatML for a model that names no template but knows ChatML's tokens; else ""."""
    return CHATML if tokenizer.token_to_id("<|im_start|>") is not None else ""


def _template(folder: Path, settings: dict[str, Any], tokenizer: Tokenizer) -> str:
    file = folder / "chat_template.jinja"
    template = settings.get("chat_template")
    if file.is_file():
        try:
            template = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 text ({error}).") from None
    if isinstance(template, list):  # several named templates
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    if isinstance(template, str):
        return template
    return _default_template(tokenizer)


def _stop_tokens(folder: Path, tokenizer: Tokenizer, special_texts: dict[str, str]) -> list[int]:
    for file in ("generation_config.json", "config.json"):
        eos = _optional_json(folder / file).get("eos_token_id")
        ids = [i for i in (eos if isinstance(eos, list) else [eos]) if type(i) is int]
        if ids and all(0 <= i < 2**32 and tokenizer.id_to_token(i) is not None for i in ids):
            return ids
    token = tokenizer.token_to_id(special_texts.get("eos_token", "<|im_end|>"))
    if token is None:
        raise InputError(
            f"{folder}: no end-of-turn token. Expected eos_token_id in generation_config.json or "
            "config.json, or eos_token in tokenizer_config.json."
        )
    return [token]


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
