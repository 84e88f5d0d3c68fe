"""The shapes of a Llama and of its adapter, under the names of their config files."""

import dataclasses
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

# The linear layers of a Llama block that LoRA can adapt, and the part of the block each lives in.
PROJECTIONS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


def module_name(layer: int, projection: str) -> str:
    """Hugging Face's name: (3, "q_proj") -> "model.layers.3.self_attn.q_proj"."""
    return f"model.layers.{layer}.{PROJECTIONS[projection]}.{projection}"


def module_names(layers: Iterable[int], projections: Container[str]) -> tuple[str, ...]:
    """The modules of some layers and some projections, in the order the model has them."""
    return tuple(
        module_name(layer, name) for layer in layers for name in PROJECTIONS if name in projections
    )


@dataclass(frozen=True)
class LlamaConfig:
    """The shapes of a LlamaForCausalLM, under the names of its config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    def projection_shape(self, projection: str) -> tuple[int, int]:
        """(out, in) of a projection's weight."""
        D, F = self.hidden_size, self.intermediate_size
        q = self.num_attention_heads * self.head_dim
        kv = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (q, D),
            "k_proj": (kv, D),
            "v_proj": (kv, D),
            "o_proj": (D, q),
            "gate_proj": (F, D),
            "up_proj": (F, D),
            "down_proj": (D, F),
        }[projection]

    def problems(self) -> list[str]:
        """Why no model has these shapes: for each reason the field, what was found and expected."""
        found = {
            "num_attention_heads": (
                self.num_attention_heads % self.num_key_value_heads == 0,
                f"a multiple of num_key_value_heads, {self.num_key_value_heads}",
            ),
            "head_dim": (self.head_dim % 2 == 0, "an even number, as RoPE turns pairs"),
            "vocab_size": (self.vocab_size >= 2, "at least 2"),
        }
        return [
            f"{name}: found {getattr(self, name)}, expected {expected}"
            for name, (fits, expected) in found.items()
            if not fits
        ]

    @property
    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the checkpoint."""
        D, V = self.hidden_size, self.vocab_size
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
        for layer in range(self.num_hidden_layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"model.layers.{layer}.{norm}.weight"] = (D,)
            for projection in PROJECTIONS:
                name = f"{module_name(layer, projection)}.weight"
                shapes[name] = self.projection_shape(projection)
        shapes["model.norm.weight"] = (D,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (V, D)
        return shapes


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter is, under the names of PEFT's adapter_config.json.

    `modules` are the adapted modules' full names, lowest layer first. `rank_pattern` and
    `alpha_pattern` give a module (by the end of its name, e.g. "q_proj" or
    "layers.0.self_attn.q_proj") its own r or lora_alpha.
    """

    r: int
    lora_alpha: float
    modules: tuple[str, ...]
    use_rslora: bool
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def rank(self, module: str) -> int:
        """r of a module, given by its full name."""
        return int(_by_suffix(self.rank_pattern, module, self.r))

    def scaling(self, module: str) -> float:
        """lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023)."""
        r, lora_alpha = self.rank(module), _by_suffix(self.alpha_pattern, module, self.lora_alpha)
        return lora_alpha / math.sqrt(r) if self.use_rslora else lora_alpha / r


def _by_suffix(pattern: Mapping[str, float], module: str, default: float) -> float:
    for suffix, value in pattern.items():
        if module == suffix or module.endswith(f".{suffix}"):
            return value
    return default
