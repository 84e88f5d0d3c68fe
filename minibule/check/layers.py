"""Exercises 4 to 8: LoRA, the layers, and attention over a forest.

A backward pass is marked by a forward pass run on both sides of each number. Where a gradient has
several terms, what they have in common is named twice in that pass, once on each way.
"""

import numpy as np

from minibule.check import forward
from minibule.check.case import Answer, Case, normal
from minibule.check.forward import Notes, gradient, root_mean_square, softmax, values
from minibule.check.stream import HEADS, SEGMENTS, stream
from minibule.machine.matrix import Array


def lora_linear_backward() -> Case:
    x, W, A, B, dy = normal(4, (5, 4), (3, 4), (2, 4), (3, 2), (5, 3))
    s = 1.7

    def loss(notes: Notes) -> float:
        into_W, into_A = (notes(f"x into {M}", notes("x", x)) for M in "WA")
        u = notes("u", into_A @ notes("A", A).T)
        return float(np.sum(dy * (into_W @ W.T + s * u @ notes("B", B).T)))

    d = {name: gradient(loss, name) for name in ("u", "A", "B", "x", "x into W", "x into A")}
    terms = {"dy W": d["x into W"], "du A": d["x into A"]}
    return Case(
        {"dy": dy, "x": x, "W": W, "A": A, "B": B, "s": s},
        {
            "u": Answer(values(loss)["u"]),
            "dB": Answer(d["B"]),
            "du": Answer(d["u"]),
            "dA": Answer(d["A"]),
            "dx": Answer(d["x"], terms),
        },
        {"s": s},
    )


X, GAMMA, DY = normal(5, (5, 6), (6,), (5, 6))
EPS = 0.1  # large, so that one forgotten shows


def rms_norm() -> Case:
    rms = root_mean_square(X, EPS)
    slips = {"eps is missing": root_mean_square(X, 0)}
    return Case(
        {"x": X, "gamma": GAMMA, "eps": EPS},
        {"rms": Answer(rms, slips=slips), "n": Answer(X / rms), "y": Answer(GAMMA * X / rms)},
        {"D": X.shape[1], "sqrt(D)": X.shape[1] ** 0.5},
    )


def rms_norm_backward() -> Case:
    def loss(notes: Notes) -> float:
        x = notes("x", X)
        n = notes("n", notes("x, above", x) / root_mean_square(x, EPS))
        return float(np.sum(DY * notes("gamma", GAMMA) * n))

    direct, dx = gradient(loss, "x, above"), gradient(loss, "x")
    terms = {"dn / rms": direct, "- n mean(dn n) / rms": dx - direct}
    return Case(
        {"dy": DY, "x": X, "gamma": GAMMA, "eps": EPS},
        {
            "dn": Answer(gradient(loss, "n")),
            "dx": Answer(dx, terms),
            "dgamma": Answer(gradient(loss, "gamma")),
        },
        {"D": X.shape[1]},
    )


def softmax_forward() -> Case:
    score = np.array(
        [[1.0, 2, 0, -np.inf], [1000, 998, 999, -np.inf], [-2000, -2001, -2000, -2003]]
    )
    att = softmax(score)
    by_column = softmax(np.where(np.isfinite(score), score, -1e9).T).T
    return Case({"score": score}, {"att": Answer(att, slips={"over rows; axis=-1": by_column})})


def softmax_backward() -> Case:
    score, datt = normal(6, (4, 5), (4, 5))

    def loss(notes: Notes) -> float:
        e = np.exp(notes("score", score))
        return float(np.sum(datt * notes("e", e) / notes("sum", e.sum(axis=-1, keepdims=True))))

    att, dscore = softmax(score), gradient(loss, "score")
    direct = gradient(loss, "e") * np.exp(score)
    inner = -gradient(loss, "sum") * np.exp(score).sum(axis=-1, keepdims=True)
    terms = {"att datt": direct, "- att sum(att datt)": dscore - direct}
    return Case(
        {"datt": datt, "att": att}, {"inner": Answer(inner), "dscore": Answer(dscore, terms)}
    )


POSITIONS, HD, THETA = np.array([0, 1, 2, 3, 2, 3]), 6, 100.0
ANGLE = forward.rope_angle(POSITIONS, HD, THETA)


def rope_angles() -> Case:
    return Case({"positions": POSITIONS, "hd": HD, "theta": THETA}, {"angle": Answer(ANGLE)})


def _pairs(x: Array) -> Array:
    """Components 2i and 2i + 1 rotated together: llama.cpp's order of the same."""
    halves = np.concatenate([x[..., ::2], x[..., 1::2]], axis=-1)
    turned = forward.rotated(halves, ANGLE)
    out = np.empty_like(x)
    out[..., ::2], out[..., 1::2] = np.split(turned, 2, axis=-1)
    return out


def rope() -> Case:
    (x,) = normal(7, (len(POSITIONS), 2, HD))
    slips = {
        "turned by -angle": forward.rotated(x, -ANGLE),
        "components 2i and 2i + 1 are turned together; here it is i and i + hd/2": _pairs(x),
    }
    y = Answer(forward.rotated(x, ANGLE), slips=slips)
    return Case({"x": x, "cos": np.cos(ANGLE), "sin": np.sin(ANGLE)}, {"y": y})


def rope_backward() -> Case:
    x, dy = normal(8, *[(len(POSITIONS), 2, HD)] * 2)
    slips = {"turned by +angle again, as if forward": forward.rotated(dy, ANGLE)}
    dx = gradient(lambda notes: float(np.sum(dy * forward.rotated(notes("x", x), ANGLE))), "x")
    return Case(
        {"dy": dy, "cos": np.cos(ANGLE), "sin": np.sin(ANGLE)}, {"dx": Answer(dx, slips=slips)}
    )


# -- 8: attention ----------------------------------------------------------------------------------

# Tokens 3 and 4 are one head's queries over five keys, the last of them one query's alone.
SEEN = np.array([[True, True, True, True, False], [True, True, True, True, True]])


def _attend(notes: Notes) -> float:
    q, k, val, dy = normal(9, (2, 4), (5, 4), (5, 4), (2, 4))
    q, k, val = notes("q", q), notes("k", k), notes("val", val)
    scale = np.sqrt(q.shape[-1])
    score = notes("score", np.where(SEEN, q @ k.T / scale, -np.inf))
    att = notes("att", softmax(score))
    return float(np.sum(notes("dy", dy) * notes("y", att @ val)))


def attend() -> Case:
    at = values(_attend)
    score = Answer(at["score"], slips={"not divided by sqrt(hd)": at["score"] * 2})
    return Case(
        {"q": at["q"], "k": at["k"], "val": at["val"], "seen": SEEN},
        {
            "att": Answer(
                at["att"], slips={"score is not divided by sqrt(hd)": softmax(score.value * 2)}
            ),
            "y": Answer(at["y"]),
        },
    )


def attend_backward() -> Case:
    at = values(_attend)
    dval, datt, dscore, dq, dk = (
        gradient(_attend, name) for name in ("val", "att", "score", "q", "k")
    )
    terms = {"att datt": at["att"] * datt, "- att sum(att datt)": dscore - at["att"] * datt}
    answers = {
        "dval": Answer(dval),
        "datt": Answer(datt),
        "dscore": Answer(dscore, terms),
        "dq": Answer(dq),
        "dk": Answer(dk),
    }
    inputs = {name: at[name] for name in ("dy", "q", "k", "val")}
    return Case(inputs | {"seen": SEEN}, answers, {"sqrt(hd)": 2})


def attention() -> Case:
    q, k, val, _ = stream()
    y = forward.attended(q, k, val, SEGMENTS)
    return Case({"q": q, "k": k, "val": val, "segments": SEGMENTS}, {"y": Answer(y)})


def attention_backward() -> Case:
    q, k, val, dy = stream()

    def loss(notes: Notes) -> float:
        inputs = (notes("q", q), notes("k", k), notes("val", val))
        return float(np.sum(dy * forward.attended(*inputs, SEGMENTS, notes)))

    def answer(name: str) -> Answer:
        return Answer(gradient(loss, name), slips=_overwritten(loss, name, k.shape))

    return Case(
        {"dy": dy, "q": q, "k": k, "val": val, "segments": SEGMENTS},
        {"dq": Answer(gradient(loss, "q")), "dk": answer("k"), "dval": answer("val")},
    )


def _overwritten(loss: forward.Forward, name: str, shape: tuple[int, ...]) -> dict[str, Array]:
    """The gradient of keys or values, each reader's share in the place of those before it."""
    segments, both = np.zeros(shape), np.zeros(shape)
    of_heads = np.zeros(shape)
    for segment, (_, keys) in enumerate(SEGMENTS):
        own, last = np.zeros(shape), np.zeros(shape)
        for head in range(HEADS):
            share = gradient(loss, f"{name} {segment} {head}")
            group = head // (HEADS // shape[1])
            own[keys, group] += share
            last[keys, group] = share
        segments[keys], both[keys] = own[keys], last[keys]
        of_heads += last
    return {
        f"each segment overwrites what others sent to the same keys: d{name}[keys] +=": segments,
        "each query head overwrites what others sent to the same key head: +=": of_heads,
        "each segment and head overwrites what others sent to the same keys: +=": both,
    }
