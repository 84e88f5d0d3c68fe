"""GGUF in: the model's shapes and weights, its tokenizer and its chat template."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr  # values of a damaged file may be as long as the file
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from minibule.core.shapes import LlamaConfig
from minibule.errors import InputError, listed
from minibule.files import native_parser, write_json
from minibule.machine.matrix import Array, Matrix
from minibule.models.gguf_file import Gguf, gguf_name, permuted_heads, unpermute
from minibule.models.huggingface import config_json, save_chat
from minibule.models.keys import GGUF, MAX_LAYERS, MERGED, RMS_NORM_EPS, ROPE_THETA
from minibule.models.safetensors import check_finite, check_shapes
from minibule.text.chat import Chat, check_token_texts, default_template
from minibule.wording import Number

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}

# tokenizer.ggml.pre -> the pre_tokenizer of a tokenizer.json that llama.cpp means by that name. A
# tokenizer that is none of these is refused: a wrong name would tokenise wrongly without a word.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
    "gpt-2": _BYTE_LEVEL,
}

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # values of tokenizer.ggml.token_type


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file that holds a model: see `models.source`."""

    file: Gguf

    @property
    def path(self) -> Path:
        return self.file.path

    def config(self) -> LlamaConfig:
        return gguf_config(self.file)

    def weights(self, config: LlamaConfig, narrow: bool) -> Mapping[str, Matrix]:
        return gguf_weights(self.file, config)  # of types of its own, which are widened all

    def weight(self, config: LlamaConfig, name: str) -> Array:
        return _weight(self.file, config, name)

    def merged(self) -> str:
        return str(self.file.get(MERGED, ""))

    def chat(self) -> Chat:
        return _chat(self.file)

    def companions(self) -> list[Path]:
        return []

    def save_companions(self, folder: Path, config: LlamaConfig, dtype: str) -> None:
        chat = self.chat()
        save_chat(chat, folder)
        ids = {f"{name}_id": number for name, number in chat.special_ids.items()}
        write_json(folder / "config.json", config_json(config, dtype) | ids)


# -- shapes and weights ----------------------------------------------------------------------------


def gguf_config(file: Gguf) -> LlamaConfig:
    """The model's shapes; InputError names what minibule does not compute."""
    architecture = file.get("general.architecture")
    if architecture != "llama":
        raise InputError(
            f"{file.path}: found the architecture {repr(architecture)}, expected 'llama', "
            "the only one minibule computes."
        )
    found = {key: value.value for key, value in file.metadata.items()}
    problems = GGUF.problems(found)

    def whole(key: str, default: Any = None, most: int = 2**31 - 1) -> Any:
        name = f"llama.{key}"
        return Number(int, 1, most).noted(file.get(name, default), name, problems)

    def real(key: str, default: Any, low: float, high: float) -> float:
        name = f"llama.{key}"
        return _decimal(Number(float, low, high).noted(file.get(name, default), name, problems))

    heads, hidden = whole("attention.head_count"), whole("embedding_length")
    head_dim = whole("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        value = file.get(f"llama.{key}", head_dim)
        if value != head_dim:
            problems.append(f"llama.{key}: found {repr(value)}, minibule computes only {head_dim}")
    tokens = file.get("tokenizer.ggml.tokens")
    vocab = len(tokens) if isinstance(tokens, list) else None
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=whole("block_count", most=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=whole("feed_forward_length"),
        vocab_size=whole("vocab_size", vocab),
        max_position_embeddings=whole("context_length"),
        rms_norm_eps=real("attention.layer_norm_rms_epsilon", None, *RMS_NORM_EPS),
        rope_theta=real("rope.freq_base", 10000.0, *ROPE_THETA),
        tie_word_embeddings="output.weight" not in file.tensors,
    )
    problems = problems or config.problems()  # of fields that are numbers, each by itself
    if vocab is not None and vocab > config.vocab_size:
        problems.append(f"llama.vocab_size: found {config.vocab_size} for {vocab} tokens")
    if problems:
        raise InputError(f"{file.path}: not a model minibule can compute:\n{listed(problems)}")
    return config


def gguf_weights(file: Gguf, config: LlamaConfig) -> dict[str, Array]:
    """All weights as float32 under their Hugging Face names, the permutation undone."""
    shapes = config.tensor_shapes()
    found = {name: tensor.shape for name, tensor in file.tensors.items()}
    check_shapes(found, {gguf_name(name): shape for name, shape in shapes.items()}, file.path)
    weights = {name: _weight(file, config, name) for name in shapes}
    check_finite(weights.items(), file.path)
    return weights


def _weight(file: Gguf, config: LlamaConfig, name: str) -> Array:
    W = _array(file, gguf_name(name))
    heads = permuted_heads(name, config)
    return np.ascontiguousarray(unpermute(W, heads)) if heads else W


def _array(file: Gguf, name: str) -> Array:
    try:
        with np.errstate(all="ignore"):  # damaged scales overflow; check_finite names them
            return file.array(name)
    except NotImplementedError:
        kind = file.tensors[name].type.name
        raise InputError(
            f"{file.path}: {name} is {kind}, which the gguf package cannot read."
        ) from None


# -- tokenizer and chat template -------------------------------------------------------------------


def _chat(file: Gguf) -> Chat:
    tokenizer = gguf_tokenizer(file)
    ids = gguf_special_ids(file)
    special_texts = {name: str(tokenizer.id_to_token(number)) for name, number in ids.items()}
    if "eos_token" not in ids:
        raise InputError(
            f"{file.path}: no end-of-turn token. Expected tokenizer.ggml.eos_token_id."
        )
    template = file.get("tokenizer.chat_template")
    if not isinstance(template, str):
        template = default_template(tokenizer)
    vocab_size = gguf_config(file).vocab_size
    stop = [ids["eos_token"], *_token_ids(file, {"eot": "eot", "eom": "eom"}).values()]
    return Chat(tokenizer, template, special_texts, stop, file.path, vocab_size)


def gguf_tokenizer(file: Gguf) -> Tokenizer:
    """The byte-level BPE that the file's metadata describes."""
    model, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    if model != "gpt2" or not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise InputError(
            f"{file.path}: found the tokenizer {repr(model)} with pre-tokenizer {repr(pre)}, "
            f"expected 'gpt2' with one of {', '.join(PRE_TOKENIZERS)}."
        )
    tokens, merges = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.merges", [])
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{file.path}: expected tokenizer.ggml.tokens, a list of texts.")
    check_token_texts(tokens, file.path)
    types = file.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise InputError(f"{file.path}: expected as many token types as tokens.")
    special = {CONTROL: True, USER_DEFINED: False}
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special[kind],
        }
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in special
    ]
    vocab = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != UNUSED
    }
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    with native_parser(f"{file.path}: its tokenizer cannot be used"):
        return Tokenizer.from_str(json.dumps(description))


def gguf_special_ids(file: Gguf) -> dict[str, int]:
    """bos_token, eos_token, ... -> token id, those that the file names."""
    return _token_ids(file, {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"})


def _token_ids(file: Gguf, names: Mapping[str, str]) -> dict[str, int]:
    """ "bos_token", ... -> token id, those of `names` that the file has."""
    tokens = file.get("tokenizer.ggml.tokens", [])
    found = {
        f"{short}_token": file.get(f"tokenizer.ggml.{long}_token_id")
        for long, short in names.items()
    }
    wrong = [
        f"{name} is {repr(i)}"
        for name, i in found.items()
        if i is not None and (type(i) is not int or not 0 <= i < len(tokens))
    ]
    if wrong:
        raise InputError(f"{file.path}: {', '.join(wrong)}, but there are {len(tokens)} tokens.")
    return {name: i for name, i in found.items() if i is not None}


def _decimal(x: float) -> float:
    """The shortest decimal number that a float32 stands for: 9.999999747e-06 is 1e-05."""
    return float(str(np.float32(x)))
