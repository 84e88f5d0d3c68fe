"""A model as a Hugging Face folder: config.json, safetensors, tokenizer and chat template.

Everything is checked before anything is used: all missing, unknown and misshapen tensors of a
checkpoint are listed in one error. How a folder is written is in `save`.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr  # values of a damaged file may be as long as the file
from typing import Any

from tokenizers import Tokenizer

from minibule.core.shapes import LlamaConfig
from minibule.errors import InputError, listed
from minibule.files import native_parser, read_json, real_path, write_json
from minibule.machine.half import widened
from minibule.machine.matrix import Array, Matrix
from minibule.models.keys import (
    CONFIG_JSON,
    MAX_LAYERS,
    MERGED,
    RMS_NORM_EPS,
    ROPE,
    ROPE_THETA,
    TOKENIZER_JSON,
)
from minibule.models.safetensors import (
    TORCH_DTYPE,
    read_metadata,
    read_tensors,
    same_numbers,
    stored_tensors,
)
from minibule.text.chat import Chat, check_token_texts, default_template
from minibule.wording import Number

# What a model folder holds beside its weights; copied as it is into a merged model's folder.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)

_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class HuggingFaceFolder:
    """A model folder, of which nothing is read before it is asked for: see `models.source`."""

    path: Path

    def config(self) -> LlamaConfig:
        """As config.json says; but, as in transformers, a head of other numbers is not tied."""
        config, files = load_config(self.path), weight_files(self.path)
        if config.tie_word_embeddings and all(file.is_file() for file in files):
            stored = stored_tensors(files)
            head, embedding = stored.get(_HEAD), stored.get("model.embed_tokens.weight")
            if head and embedding and not same_numbers(head, embedding):
                return dataclasses.replace(config, tie_word_embeddings=False)
        return config

    def weights(self, config: LlamaConfig, narrow: bool) -> Mapping[str, Matrix]:
        stored = {
            name: tensor
            for name, tensor in stored_tensors(weight_files(self.path)).items()
            if not is_derived(name, config)
        }
        return read_tensors(stored, config.tensor_shapes(), self.path, narrow)

    def weight(self, config: LlamaConfig, name: str) -> Array:
        found = stored_tensors(weight_files(self.path))
        stored = {name: found[name]} if name in found else {}
        return widened(read_tensors(stored, {name: config.tensor_shapes()[name]}, self.path)[name])

    def merged(self) -> str:
        return read_metadata(weight_files(self.path)[0]).get(MERGED, "")

    def chat(self) -> Chat:
        return _chat(self.path)

    def companions(self) -> list[Path]:
        return [file for name in COMPANIONS if (file := companion(self.path, name))]

    def save_companions(self, folder: Path, config: LlamaConfig, dtype: str) -> None:
        for file in self.companions():
            shutil.copyfile(file, folder / file.name)  # a new file, readable to whom new ones are
        raw = read_json(self.path / "config.json") | {
            "torch_dtype": TORCH_DTYPE[dtype],
            "tie_word_embeddings": config.tie_word_embeddings,
        }
        raw.pop("dtype", None)  # the newer name of the same
        write_json(folder / "config.json", raw)


# -- shapes and weights ----------------------------------------------------------------------------


def load_config(folder: Path) -> LlamaConfig:
    """The shapes in a folder's config.json; InputError names all that is not supported."""
    path = folder / "config.json"
    raw = read_json(path)
    architectures = raw.get("architectures") or [raw.get("model_type")]
    if architectures not in (["LlamaForCausalLM"], ["llama"]):
        raise InputError(
            f"{path}: found the architecture {repr(architectures)}, expected LlamaForCausalLM, "
            "the only one minibule computes."
        )
    # As transformers: of both names the older; and its rope_theta before that of the top.
    where = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    rope = raw.get(where) or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    kind = {key: rope[key] for key in ("rope_type", "type") if key in rope}
    problems = CONFIG_JSON.problems(raw)
    problems += ROPE.problems(kind, f"{where}.") or ROPE.problems(rope, f"{where}.")
    raw["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10000.0))

    def whole(name: str, default: int | None = None, most: int = 2**31 - 1) -> Any:
        value = raw.get(name, default)
        return Number(int, 1, most).noted(default if value is None else value, name, problems)

    def real(name: str, low: float, high: float) -> float:
        return float(Number(float, low, high).noted(raw.get(name), name, problems))

    heads, hidden = whole("num_attention_heads"), whole("hidden_size")
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=whole("num_hidden_layers", most=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", hidden // heads),
        intermediate_size=whole("intermediate_size"),
        vocab_size=whole("vocab_size"),
        max_position_embeddings=whole("max_position_embeddings", 2048),
        rms_norm_eps=real("rms_norm_eps", *RMS_NORM_EPS),
        rope_theta=real("rope_theta", *ROPE_THETA),
        tie_word_embeddings=raw.get("tie_word_embeddings", False) is True,
    )
    problems = problems or config.problems()  # of fields that are numbers, each by itself
    if problems:
        raise InputError(f"{path}: not a model minibule can compute:\n{listed(problems)}")
    return config


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        return [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: expected an object weight_map from tensor to file.")
    for name in weight_map.values():
        # Not "..", not "a/b", and on Windows, where other signs cut names too, not "C:b" or "a\\b".
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,250}", name):
            raise InputError(
                f"{index}: found the file {repr(name)}, expected plain file names in {folder}."
            )
    return [folder / name for name in sorted(set(weight_map.values()))]


def is_derived(name: str, config: LlamaConfig) -> bool:
    """Whether a checkpoint's tensor only repeats what follows from others, as old ones do."""
    tied_head = name == _HEAD and config.tie_word_embeddings
    return tied_head or name.endswith("rotary_emb.inv_freq")


def config_json(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model of these shapes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "torch_dtype": TORCH_DTYPE[dtype],
    }


# -- tokenizer and chat template -------------------------------------------------------------------


def companion(folder: Path, name: str) -> Path | None:
    """The file of that name in a model folder, if it is there.

    A link may lead to another file of the folder, or to the blobs of the hub's cache in which the
    folder is a snapshot (snapshots/REVISION/x -> ../../blobs/HASH). InputError for one that leads
    elsewhere: what it shows would be given away with a merged model. And for what is no file.
    """
    file = folder / name
    if not file.exists():
        return None
    home, target = real_path(folder), real_path(file)
    homes = [home, *(p.parent / "blobs" for p in home.parents if p.name == "snapshots")]
    if not any(target.is_relative_to(home) for home in homes):
        raise InputError(
            f"{file}: found a link that leads out of the model's folder, to {target}; expected a "
            "file. If it belongs to the model, copy it there."
        )
    if not file.is_file() or not os.access(file, os.R_OK):
        raise InputError(f"{file}: expected a file that can be copied beside the weights.")
    return file


def _chat(folder: Path) -> Chat:
    file = companion(folder, "tokenizer.json") or folder / "tokenizer.json"
    described = read_json(file)
    problems = TOKENIZER_JSON.problems(described)
    if problems:
        raise InputError(f"{file}: not a tokenizer that can be used:\n{listed(problems)}")
    check_token_texts(_added_texts(described), file)
    with native_parser(f"{file}: not a tokenizer that can be used"):
        tokenizer = Tokenizer.from_file(str(file))
    settings = _optional_json(companion(folder, "tokenizer_config.json"))
    texts = {
        name: text.get("content") if isinstance(text, dict) else text
        for name, text in settings.items()
        if name.endswith("_token")
    }
    special_texts = {name: text for name, text in texts.items() if isinstance(text, str)}
    check_token_texts(special_texts.values(), folder)
    eos = _stop_tokens(folder, tokenizer, special_texts)
    template = _template(folder, settings, tokenizer)
    size = _optional_json(folder / "config.json").get("vocab_size")
    vocab_size = size if type(size) is int else None
    return Chat(tokenizer, template, special_texts, eos, folder, vocab_size)


def _added_texts(described: dict[str, Any]) -> list[str]:
    """The texts of a tokenizer.json's added tokens, as far as it is one."""
    added = described.get("added_tokens")
    tokens = (
        [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    )
    return [str(token.get("content")) for token in tokens]


def save_chat(chat: Chat, folder: Path) -> None:
    """Write the tokenizer files of a Hugging Face folder."""
    chat.tokenizer.save(str(folder / "tokenizer.json"))
    settings = {**chat.special_texts, "tokenizer_class": "PreTrainedTokenizerFast"}
    if chat.template:
        settings["chat_template"] = chat.template
    write_json(folder / "tokenizer_config.json", settings)
    ids = {f"{name}_id": number for name, number in chat.special_ids.items()}
    write_json(folder / "generation_config.json", ids | {"eos_token_id": chat.end_of_turn})


def _template(folder: Path, settings: dict[str, Any], tokenizer: Tokenizer) -> str:
    file = companion(folder, "chat_template.jinja")
    template = settings.get("chat_template")
    if file:
        try:
            template = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}: not UTF-8 text ({error}).") from None
    if isinstance(template, list):  # several named templates
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0].get("template") if named else None
    if isinstance(template, str):
        return template
    return default_template(tokenizer)


def _stop_tokens(folder: Path, tokenizer: Tokenizer, special_texts: dict[str, str]) -> list[int]:
    for file in (companion(folder, "generation_config.json"), folder / "config.json"):
        eos = _optional_json(file).get("eos_token_id")
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


def _optional_json(path: Path | None) -> dict[str, Any]:
    return read_json(path) if path and path.exists() else {}
