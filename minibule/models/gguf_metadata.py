"""What a GGUF file says of a model beside its tensors: shapes, tokenizer, chat template.

llama.cpp knows ways of cutting text into words by name. Which name a tokenizer has follows from
what it does, not from what its file is called: one that is none of the known is refused.
"""

import json
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType
from gguf.gguf_writer import GGUFValue

from minibule.core.shapes import LlamaConfig
from minibule.errors import InputError, listed
from minibule.files import real_path
from minibule.models.gguf_file import Metadata, array_value, text_value, u32_value
from minibule.models.gguf_read import CONTROL, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED
from minibule.text.chat import Chat


def model_metadata(config: LlamaConfig, chat: Chat) -> Metadata:
    """Everything llama.cpp wants to know of a model beside its tensors."""
    shapes = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        shapes |= {
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    reals = {
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    return {
        "general.architecture": text_value("llama"),
        "general.type": text_value("model"),
        "general.name": text_value(real_path(chat.source).name),
        "general.file_type": u32_value(0),
        **{f"llama.{key}": u32_value(value) for key, value in shapes.items()},
        **{f"llama.{key}": GGUFValue(value, GGUFValueType.FLOAT32) for key, value in reals.items()},
        **tokenizer_metadata(chat, config.vocab_size),
    }


def tokenizer_metadata(chat: Chat, vocab_size: int) -> Metadata:
    """The tokenizer and chat template as GGUF metadata."""
    description = json.loads(chat.tokenizer.to_str())
    bpe = description["model"]
    pre = _pre_tokenizer_name(description, chat.source)
    ids = chat.tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values()) >= vocab_size:
        raise InputError(
            f"{chat.source}: found token ids up to {max(ids.values())}, "
            f"expected less than the model's vocab_size of {vocab_size}."
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]  # ids that no text gives
    types = [UNUSED] * vocab_size
    for token, number in ids.items():
        tokens[number], types[number] = token, NORMAL
    for added in description["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    special = {
        "bos": chat.special_ids.get("bos_token"),
        "eos": chat.special_ids.get("eos_token", chat.end_of_turn),
        "unknown": chat.special_ids.get("unk_token"),
        "padding": chat.special_ids.get("pad_token"),
    }
    return {
        "tokenizer.ggml.model": text_value("gpt2"),
        "tokenizer.ggml.pre": text_value(pre),
        "tokenizer.ggml.tokens": array_value(tokens, GGUFValueType.STRING),
        "tokenizer.ggml.token_type": array_value(types, GGUFValueType.INT32),
        "tokenizer.ggml.merges": array_value(merges, GGUFValueType.STRING),
        **{
            f"tokenizer.ggml.{name}_token_id": u32_value(number)
            for name, number in special.items()
            if number is not None
        },
        "tokenizer.ggml.add_bos_token": GGUFValue(False, GGUFValueType.BOOL),
        "tokenizer.ggml.add_space_prefix": GGUFValue(False, GGUFValueType.BOOL),
        **({"tokenizer.chat_template": text_value(chat.template)} if chat.template else {}),
    }


def _pre_tokenizer_name(description: dict[str, Any], source: Path) -> str:
    """llama.cpp's name for a tokenizer's way of cutting text, from what the tokenizer does."""
    bpe = description["model"]
    cut = _essential(description["pre_tokenizer"])
    problems: list[str] = []
    if bpe["type"] != "BPE" or bpe.get("byte_fallback") or bpe.get("ignore_merges"):
        problems.append(f"model: found {bpe['type']}, expected plain byte-level BPE")
    problems += [
        f"{part}: found {description[part]['type']}, expected none"
        for part in ("normalizer", "post_processor")
        if description[part] is not None and description[part]["type"] != "ByteLevel"
    ]
    problems += [
        f"{token['content']}: strips the spaces around it"
        for token in description["added_tokens"]
        if token["lstrip"] or token["rstrip"]
    ]
    names = [name for name, known in PRE_TOKENIZERS.items() if _essential(known) == cut]
    if not names:
        known = ", ".join(PRE_TOKENIZERS)
        problems.append(f"pre_tokenizer: found {json.dumps(cut)}, none of the known: {known}")
    if problems:
        raise InputError(
            f"{source}: its tokenizer has no name in llama.cpp that minibule knows, and a wrong "
            f"one would tokenise wrongly:\n{listed(problems)}"
        )
    return names[0]


def _essential(part: Any) -> Any:
    """A pre_tokenizer's description without what does not change the tokens."""
    if isinstance(part, list):
        return [_essential(item) for item in part]
    if isinstance(part, dict):
        return {key: _essential(value) for key, value in part.items() if key != "trim_offsets"}
    return part
