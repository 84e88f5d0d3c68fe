"""Gradients checked by central differences, in float64: what the loss itself says of its slope."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from minibule.core.llama import Llama, backward, forward_batch
from minibule.core.lora import Adapter, lora_name
from minibule.explain.subject import MeanLoss, RowPass, one_pass
from minibule.explain.text import decimals_for, prose, table
from minibule.machine.matrix import Array, Matrix

STEP = 1e-5  # h of the central differences in float64: near the cube root of its precision

# Of the largest entry. The error of central differences themselves is h^2 times the third
# derivative, some 1e-10, and that of rounding, which `verdict` adds.
AGREE = 1e-6


def central_difference(f: Callable[[], float], x: Array, index: int | tuple[int, ...]) -> float:
    """(f(x + h) - f(x - h)) / 2h, one entry of x moved in place and put back; x float64."""
    kept = x[index]
    x[index] = kept + STEP
    above = f()
    x[index] = kept - STEP
    below = f()
    x[index] = kept
    return (above - below) / (2 * STEP)


def verdict(numeric: Array, gradient: Array, z: Array) -> str:
    """Whether central differences are the gradient; z are the logits that the loss is made of."""
    error, largest = np.abs(numeric - gradient).max(), np.abs(gradient).max()
    # A loss of logits z is rounded to about eps |z|, which the division by 2h makes larger.
    rounding = 10 * np.finfo(np.float64).eps * max(1, np.abs(z).max()) / STEP
    agree = "They agree" if error <= AGREE * largest + rounding else "THEY DO NOT AGREE"
    relative = error / largest if largest else error
    return f"{agree}: the relative difference is {relative:.1e}."


# -- into the adapter ------------------------------------------------------------------------------


class _Float64(dict[str, Matrix]):
    """Weights widened one by one as they are asked for: twice the model need not fit in memory."""

    def __getitem__(self, name: str) -> Array:
        return super().__getitem__(name)[:].astype(np.float64)


class AdapterCheck:
    """The gradient of a loss by LoRA pairs against central differences, the model in float64."""

    def __init__(self, model: Llama, mean: MeanLoss) -> None:
        self.mean, self.wide = mean, Llama(model.config, _Float64(model.weights))
        self.ref_hidden, _ = forward_batch(self.wide, mean.batch)

    def lines(
        self, adapter: Adapter, module: str, matrices: str, above: Sequence[Sequence[str]] = ()
    ) -> Iterator[str]:
        """A table of dB and dA, as `matrices` says, below the rows `above`, and the verdict."""
        # Backward goes down to the lowest module of the config, here the one that is looked at.
        config = dataclasses.replace(adapter.config, modules=(module,))
        wide = Adapter(config, {n: p.astype(np.float64) for n, p in adapter.params.items()})

        def again() -> RowPass:
            return one_pass(self.wide, wide, self.mean, self.ref_hidden, recompute=True)

        now = again()
        grads = backward(now.dhidden, now.cache)
        body, pairs = list(above), []
        for matrix in matrices:
            name = lora_name(module, matrix)
            grad = grads[name]
            index = tuple(int(i) for i in np.unravel_index(np.abs(grad).argmax(), grad.shape))
            pair = (
                central_difference(lambda: again().loss, wide.params[name], index),
                float(grad[index]),
            )
            show = decimals_for(np.array(pair), 6)
            norm = f"{np.linalg.norm(grad):.3g}"
            place = f"[{index[0]}, {index[1]}]" if grad.any() else ""
            body.append([f"d{matrix}", str(grad.shape), norm, place, show(pair[1]), show(pair[0])])
            pairs.append(pair)
        numeric, gradient = np.array(pairs).T
        yield from table(["", "shape", "norm", "largest at", "there", "numeric"], body)
        z = now.hidden[self.mean.rows.weight > 0] @ self.wide.head.T
        yield from prose(verdict(numeric, gradient, z))
