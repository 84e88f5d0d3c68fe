"""LoRA: a frozen linear layer with a small trained detour beside it.

    y = x W^T + scaling * (x A^T) B^T          x (T, in)  W (out, in)  A (r, in)  B (out, r)

W stays as it is; only A and B learn. So backward forms no gradient of W (out x in numbers), only
those of A and B (r x (in + out)): that saving is the point. B starts at zero, so an untrained
adapter changes nothing. Source: Hu et al. 2021, "LoRA"; the names are those of the PEFT library.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from minibule.core.ops import Cache
from minibule.core.shapes import LlamaConfig, LoraConfig
from minibule.machine.matrix import Array, Matrix

BLOCK_ROWS = 64  # of `_add_product`


def lora_linear(x: Array, W: Matrix, A: Array, B: Array, scaling: float) -> tuple[Array, Cache]:
    """y = x W^T + scaling * u B^T with u = x A^T."""
    u = x @ A.T  # (T, r)
    y = x @ W.T
    _add_product(y, scaling * u, B.T)
    return y, (x, W, A, B, scaling)


def lora_linear_backward(dy: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """With u = x A^T and du = s dy B:  dx = dy W + du A     dA = du^T x     dB = s dy^T u

    s is the scaling. Each follows from one term of y: W and A see x directly, B sees u, which is
    worked out once more. Returns (dx, dA, dB): the frozen W has no gradient.
    """
    x, W, A, B, scaling = cache
    u = x @ A.T  # (T, r)
    du = scaling * (dy @ B)  # (T, r)
    dx = dy @ W
    _add_product(dx, du, A)
    return dx, du.T @ x, scaling * (dy.T @ u)


def _add_product(y: Array, narrow: Array, M: Array) -> None:
    """y += narrow @ M in place; y (T, n), narrow (T, r), M (r, n).

    The product is as large as y but little work: a few rows at a time, it stays in the cache.
    """
    for start in range(0, len(y), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        y[rows] += narrow[rows] @ M


@dataclass
class Adapter:
    """The trained numbers of a LoRA adapter.

    `params` maps PEFT's names, e.g. "model.layers.0.self_attn.q_proj.lora_A.weight", to arrays:
    A is (r, in), B is (out, r). All of them are float32, or all float64 in the gradient checks.
    """

    config: LoraConfig
    params: dict[str, Array]

    def pair(self, module: str) -> tuple[Array, Array, float] | None:
        """(A, B, scaling) of a module such as "model.layers.0.mlp.up_proj"; None: not adapted."""
        A = self.params.get(lora_name(module, "A"))
        if A is None:
            return None
        return A, self.params[lora_name(module, "B")], self.config.scaling(module)


def lora_name(module: str, matrix: str) -> str:
    """PEFT's name of matrix "A" or "B" of a module."""
    return f"{module}.lora_{matrix}.weight"


def adapter_shapes(config: LoraConfig, model: LlamaConfig) -> dict[str, tuple[int, int]]:
    """Name and shape of every matrix of the adapter, lowest layer first."""
    shapes = {}
    for module in config.modules:
        r = config.rank(module)
        out_features, in_features = model.projection_shape(module.rpartition(".")[2])
        shapes[lora_name(module, "A")] = (r, in_features)
        shapes[lora_name(module, "B")] = (out_features, r)
    return shapes


def init_adapter(config: LoraConfig, model: LlamaConfig, seed: int) -> Adapter:
    """An untrained adapter: B = 0, and A drawn from U(-1/sqrt(in), 1/sqrt(in)).

    The bound is Kaiming's for a = sqrt(5): sqrt(6 / ((1 + a^2) in)) = 1/sqrt(in), which is what
    PEFT takes over from torch.nn.Linear.
    """
    rng = np.random.default_rng([seed, 1])
    params = {}
    for name, shape in adapter_shapes(config, model).items():
        if ".lora_A." in name:
            bound = 1 / np.sqrt(shape[1])
            params[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        else:
            params[name] = np.zeros(shape, np.float32)
    return Adapter(config, params)


def merged_weight(W: Matrix, pair: tuple[Array, Array, float] | None) -> Array:
    """W + scaling * B A, the one matrix that acts like W and its adapter together."""
    if pair is None:
        return W[:]
    A, B, scaling = pair
    return W[:] + scaling * (B @ A)


def lowest_layer(modules: Iterable[str]) -> int:
    """The lowest layer among module names; backward need not go below it."""
    return min(int(module.split(".")[2]) for module in modules)
