"""Exercises 1 to 3: what counts say, the loss, and log(1 - p).

Their answers come from fractions, from decimals, and from the loss on both sides of each number.
"""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np

from minibule.check import forward
from minibule.check.case import Answer, Case, normal
from minibule.check.forward import Notes, gradient, values

COUNTS = np.array([[0.0, 2, 1, 0], [0, 0, 5, 0], [3, 1, 0, 1]])


def complement_distribution() -> Case:
    """In fractions, row by row."""
    rows = [[Fraction(int(c)) for c in row] for row in COUNTS]
    weights = [[sum(row) - c + 1 for c in row] for row in rows]
    P = [[w / sum(row) for w in row] for row in weights]
    T, weights_, P_ = (np.array(x, np.float64) for x in ([[sum(r)] for r in rows], weights, P))
    of_all = COUNTS.sum() - COUNTS + 1
    return Case(
        {"v": COUNTS},
        {
            "T": Answer(T),
            "weights": Answer(
                weights_, slips={"T is summed over all rows, not row by row": of_all}
            ),
            "P": Answer(
                P_,
                slips={
                    "divided by the sum over all rows, not row by row": weights_ / weights_.sum()
                },
            ),
        },
    )


def complement_loss() -> Case:
    """By central differences of the loss; the shares of its two parts with alpha 1 and 0."""
    (z,), alpha, n = normal(1, COUNTS.shape), 0.7, len(COUNTS)

    def loss(alpha: float) -> forward.Forward:
        return lambda notes: forward.complement_loss(notes, notes("z", z), COUNTS, alpha)

    def contrast_of_logp(notes: Notes) -> float:
        return -float(np.sum(w * np.log(1 - np.exp(notes("log p", np.log(p))))))

    at = values(loss(alpha))
    p, P, w = at["p"], at["P"], at["w"]
    a = gradient(contrast_of_logp, "log p")
    pulled, pushed = ((1 - alpha) * a / n, (1 - alpha) * gradient(loss(0), "z"))
    terms = {
        "alpha (p - P)": alpha * gradient(loss(1), "z"),
        "(1 - alpha) a": pulled,
        "- (1 - alpha) S p": pushed - pulled,
    }
    dz = gradient(loss(alpha), "z")
    slips = {"a stands where w p belongs, at the rejected token": dz + (1 - alpha) * a * p / n}
    other_way = (p * np.log(p / P)).sum(axis=-1)
    kl, contrast = (float(at[name].mean()) for name in ("kl", "contrast"))
    mixed = {
        "alpha and 1 - alpha are exchanged": np.array((1 - alpha) * kl + alpha * contrast),
        "alpha and 1 - alpha are missing": np.array(kl + contrast),
    }
    return Case(
        {"z": z, "v": COUNTS, "alpha": alpha},
        {
            "p": Answer(p),
            "P": Answer(P),
            "w": Answer(w),
            "kl": Answer(at["kl"], slips={"this is KL(p || P), the other direction": other_way}),
            "contrast": Answer(at["contrast"]),
            "loss": Answer(at["loss"], slips=mixed),
            "a": Answer(a),
            "dz": Answer(dz, terms, slips),
        },
        {"n": n, "alpha": alpha, "1 - alpha": 1 - alpha},
    )


def log_one_minus_p() -> Case:
    """In decimals: there p = 1 - 1e-44 is a number like any other."""
    z = np.array([[20, 0, 0], [100, 1, -1], [0.5, 1, 1.5], [3, -100, 2]], np.float32)
    i = np.array([0, 0, 2, 1])
    with localcontext(prec=60):
        logits = [[Decimal(float(x)) for x in row] for row in z]

        def total(row: list[Decimal]) -> Decimal:
            return sum((x.exp() for x in row), Decimal(0)).ln()

        def log_rest(row: list[Decimal], i: int) -> Decimal:
            return total(row[:i] + row[i + 1 :]) - total(row)

        def slope(row: list[Decimal], i: int, j: int) -> Decimal:
            h = Decimal("1e-20")
            up, down = ([x + way * (k == j) for k, x in enumerate(row)] for way in (h, -h))
            return (log_rest(down, i) - log_rest(up, i)) / (2 * h)

        pairs = [(row, int(k)) for row, k in zip(logits, i, strict=True)]
        answers = {
            "total": [total(row) for row, _ in pairs],
            "others": [total(row[:k] + row[k + 1 :]) for row, k in pairs],
            "log_rest": [log_rest(row, k) for row, k in pairs],
            "dz": [[slope(row, k, j) for j in range(len(row))] for row, k in pairs],
        }
    arrays = {name: np.array(x, np.float64) for name, x in answers.items()}
    largest, rest = z.max(axis=-1, keepdims=True), z.copy()
    rest[np.arange(len(z)), i] = -np.inf
    with np.errstate(divide="ignore"):
        of_all = largest[:, 0] + np.log(np.exp(rest - largest).sum(axis=-1))
    whole = "the largest of the whole row was taken away, token i among them: the others underflow"
    slips = {"others": {whole: of_all}}
    return Case({"z": z, "i": i}, {n: Answer(x, slips=slips.get(n, {})) for n, x in arrays.items()})
