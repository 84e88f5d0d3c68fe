"""Exercises 9 to 11: one block, AdamW, and a full step. AdamW's answers are torch's."""

from collections.abc import Mapping

import numpy as np

from minibule.check import forward
from minibule.check.case import Answer, Case, normal
from minibule.check.forward import Notes, gradient, values
from minibule.check.stream import HD, HEADS, KV_HEADS, POSITIONS, SEGMENTS
from minibule.machine.matrix import Array

T, D, F, EPS = len(POSITIONS), 6, 7, 0.01
ANGLE = forward.rope_angle(POSITIONS, HD, 100.0)


def _layer() -> dict[str, Array]:
    """The weights of a block, those of the norms away from 1."""
    sizes = {
        "q_proj": (HEADS * HD, D),
        "k_proj": (KV_HEADS * HD, D),
        "v_proj": (KV_HEADS * HD, D),
        "o_proj": (D, HEADS * HD),
        "gate_proj": (F, D),
        "up_proj": (F, D),
        "down_proj": (D, F),
    }
    W = {name: w / 2 for name, w in zip(sizes, normal(9, *sizes.values()), strict=True)}
    first, second = normal(10, (D,), (D,))
    return W | {"input_layernorm": 1 + first / 4, "post_attention_layernorm": 1 + second / 4}


# What block and block_backward are given beside x and dy.
_SHARED = {
    "layer": _layer(),
    "cos": np.cos(ANGLE),
    "sin": np.sin(ANGLE),
    "segments": SEGMENTS,
    "eps": EPS,
}


def _through_block(notes: Notes) -> float:
    x, dy = normal(11, (T, D), (T, D))
    return float(np.sum(dy * forward.block(notes, x, _layer(), ANGLE, HD, SEGMENTS, EPS)))


def block() -> Case:
    at = values(_through_block)
    names = ("x1", "q", "k", "val", "o", "mid", "x2", "gate", "up", "h", "y")
    terms = {
        "mid": {"x, the residual": at["x"], "o through o_proj": at["mid"] - at["x"]},
        "y": {"mid, the residual": at["mid"], "h through down_proj": at["y"] - at["mid"]},
    }
    answers = {name: Answer(at[name], terms.get(name, {})) for name in names}
    return Case({"x": at["x"], **_SHARED}, answers)


def block_backward() -> Case:
    x, dy = normal(11, (T, D), (T, D))
    names = ("h", "gate", "up", "x2", "mid", "o", "q", "k", "val", "x1", "x")

    def d(name: str) -> Array:
        return gradient(_through_block, name)

    def around(name: str, gone_around: str) -> dict[str, Array]:
        direct = d(f"{name}, around")
        return {gone_around: direct, "of the norm": d(name) - direct}

    terms = {
        "x2": {f"of {name}_proj": d(f"x2, {name}") for name in ("gate", "up")},
        "mid": around("mid", "dy, the residual"),
        "x1": {f"of {name}": d(f"x1, {name}") for name in ("q_proj", "k_proj", "v_proj")},
        "x": around("x", "dmid, the residual"),
    }
    answers = {f"d{name}": Answer(d(name), terms.get(name, {})) for name in names}
    return Case({"dy": dy, "x": x, **_SHARED}, answers)


# -- 10: AdamW -------------------------------------------------------------------------------------

# torch.optim.AdamW in float64, after the gradients [1, -2, .5, 0] and [.25, 1, -.5, 0], and then
# after GRAD: the parameters, exp_avg and exp_avg_sq.
LR, DECAY, GRAD = 0.1, 0.5, np.array([-1.5, 0.125, 2.0, 0.5])
TWO_STEPS = (
    np.array([0.2731902487222726, -0.7808662966774315, 1.7152631596894736, 0.225625]),
    np.array([0.11499999999999998, -0.07999999999999999, -0.005000000000000004, 0.0]),
    np.array([0.001061500000000001, 0.004996000000000005, 0.0004997500000000004, 0.0]),
)
THREE_STEPS = (
    np.array([0.2758569072395459, -0.7248359144370072, 1.5706223016859633, 0.1504623922719572]),
    np.array([-0.046499999999999986, -0.05949999999999999, 0.19549999999999995, 0.05]),
    np.array([0.003310438500000003, 0.005006629000000005, 0.004499250250000004, 0.00025]),
)


def adamw() -> Case:
    theta, mean, square = TWO_STEPS
    after, new_mean, new_square = THREE_STEPS
    decayed = -LR * DECAY * theta
    terms = {"theta": theta, "- lr weight_decay theta": decayed, "Adam's": after - theta - decayed}
    return Case(
        {
            "theta": theta,
            "g": GRAD,
            "mean": mean,
            "square": square,
            "n": 3,
            "lr": LR,
            "weight_decay": DECAY,
        },
        {
            "new_mean": Answer(new_mean),
            "new_square": Answer(new_square),
            "mean_hat": Answer(new_mean / (1 - 0.9**3)),
            "square_hat": Answer(new_square / (1 - 0.999**3)),
            "new_theta": Answer(after, terms),
        },
        {"1 - 0.9^n": 1 - 0.9**3, "1 - 0.999^n": 1 - 0.999**3},
    )


# -- 11: a full step -------------------------------------------------------------------------------

VOCABULARY, ALPHA, SCALE = 9, 0.7, 1.7
IDS = np.array([1, 2, 3, 4, 5, 7, 6])
# After 3 two answers go on (4 and 7), so this row stands there twice; the last tokens end both.
ROWS = np.array([2, 2, 3, 5])
ROW_COUNTS = np.zeros((len(ROWS), VOCABULARY))
ROW_COUNTS[[0, 0, 1, 1, 2, 3], [4, 7, 4, 7, 5, 6]] = [2, 1, 2, 1, 2, 1]


def _weights() -> Mapping[str, Array]:
    E, gamma, A, B = normal(12, (VOCABULARY, D), (D,), (2, D), (HEADS * HD, 2))
    return {"E": E, "gamma": 1 + gamma / 4, "A": A / 2, "B": B / 2}


def _step(notes: Notes) -> float:
    weights, layer = _weights(), _layer()
    A, B = notes("A", weights["A"]), notes("B", weights["B"])
    layer["q_proj"] = layer["q_proj"] + SCALE * B @ A
    y = forward.block(notes, weights["E"][IDS], layer, ANGLE, HD, SEGMENTS, EPS)
    normed = weights["gamma"] * y / forward.root_mean_square(y, EPS)
    hidden = notes("hidden", normed[ROWS])
    z = notes("z", hidden @ weights["E"].T)
    return forward.complement_loss(notes, z, ROW_COUNTS, ALPHA)


def training_step() -> Case:
    weights, at = _weights(), values(_step)

    def d(name: str) -> Array:
        return gradient(_step, name)

    def after(name: str) -> Array:
        """Adam's first step: both its means, undone from their start at 0, are the gradient's."""
        return weights[name] - LR * d(name) / (np.abs(d(name)) + 1e-8)

    dy, once = d("y"), d("y")
    once[2] /= 2  # the two equal rows send the same
    return Case(
        {
            "ids": IDS,
            "rows": ROWS,
            "v": ROW_COUNTS,
            **weights,
            **_SHARED,
            "s": SCALE,
            "alpha": ALPHA,
            "lr": LR,
        },
        {
            "x": Answer(at["x"]),
            "y": Answer(at["y"]),
            "hidden": Answer(at["hidden"]),
            "z": Answer(at["z"]),
            "loss": Answer(at["loss"]),
            "dz": Answer(d("z")),
            "dhidden": Answer(d("hidden")),
            "dy": Answer(dy, slips={"row 2 counts once: it stands in rows twice, +=": once}),
            "dq_out": Answer(d("q_proj, out")),
            "dA": Answer(d("A")),
            "dB": Answer(d("B")),
            "new_A": Answer(after("A")),
            "new_B": Answer(after("B")),
        },
        {"s": SCALE, "R": len(ROWS)},
    )
