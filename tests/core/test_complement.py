"""The dense loss against a naive loop and its axioms, the fused loss against the dense one."""

import math

import numpy as np
import pytest
from helpers import gradient_error

from minibule import complement_distribution, complement_loss
from minibule.core import complement, fused
from minibule.core import head as loss
from minibule.core.counts import RowCounts
from minibule.core.fused import TargetLoss
from minibule.core.objective import OBJECTIVES, Objective
from minibule.errors import InputError

CHOICES = [
    *OBJECTIVES.values(),
    Objective("reference", "prefix", "plain", 0.3),
    Objective("reference", "prefix", "ratio", 0.25),
    Objective("uniform", "position", "ratio", 0.7),
    Objective("rate", "prefix", "ratio", 0.1),
    Objective("uniform", "prefix", "choice", 0.0),
    Objective("uniform", "position", "plain", 1.0),
]
NAMED = [pytest.param(o, id="-".join(map(str, o))) for o in CHOICES]


@pytest.fixture
def rng():
    """A generator of the test's own: its data do not depend on which tests ran before."""
    return np.random.default_rng(0)


def random_counts(rng, n=6, vocab=11, most=5, density=0.3):
    """Counts with many zeros, as rejections are, and at least one in each row."""
    counts = rng.integers(1, most, (n, vocab)) * (rng.random((n, vocab)) < density)
    counts[np.arange(n), rng.integers(0, vocab, n)] += 1
    return counts


# -- the distribution ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(50))
def test_axioms(seed):
    rng = np.random.default_rng(seed)
    counts = random_counts(rng, vocab=int(rng.integers(1, 40)), most=int(10 ** rng.integers(1, 7)))
    P = complement_distribution(counts)
    assert P.dtype == np.float64
    assert (P > 0).all()  # positivity
    np.testing.assert_allclose(P.sum(axis=-1), 1, rtol=1e-14)  # normalisation
    less = counts[:, :, None] < counts[:, None, :]  # monotonicity, strict where strict
    assert (P[:, :, None] > P[:, None, :])[less].all()
    same = counts[:, :, None] == counts[:, None, :]
    assert (P[:, :, None] == P[:, None, :])[same].all()


def test_the_distribution_of_a_hand_worked_row():
    # v = 0 2 1: T = 3, weights 4 2 3 of 9.
    np.testing.assert_allclose(complement_distribution([0, 2, 1]), [4 / 9, 2 / 9, 3 / 9])
    np.testing.assert_allclose(complement_distribution(np.zeros((2, 4))), np.full((2, 4), 0.25))


@pytest.mark.parametrize(
    "counts",
    [-1.0, [], [[1, -1]], [np.nan, 1], [np.inf, 1], ["a", "b"], [1e308, 1e308], [[1, 2], [3]]],
)
def test_counts_that_are_none(counts):
    with pytest.raises(InputError, match="counts"):
        complement_distribution(counts)


# -- the dense loss --------------------------------------------------------------------------------


def naive_loss(logits, counts, alpha):
    """The published formula, one token at a time."""
    total = 0.0
    for z, v in zip(logits.tolist(), counts.tolist(), strict=True):
        exps = [math.exp(x) for x in z]
        p = [e / sum(exps) for e in exps]
        T = sum(v)
        weights = [T - c + 1 for c in v]
        P = [w / sum(weights) for w in weights]
        kl = sum(a * math.log(a / b) for a, b in zip(P, p, strict=True))
        contrast = -sum(c / T * math.log(1 - b) for c, b in zip(v, p, strict=True))
        total += alpha * kl + (1 - alpha) * contrast
    return total / len(logits)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_loss_is_the_naive_loop(alpha, rng):
    logits, counts = rng.normal(size=(6, 11)), random_counts(rng)
    value, _ = complement_loss(logits, counts, alpha)
    assert value == pytest.approx(naive_loss(logits, counts, alpha), rel=1e-12)


@pytest.mark.parametrize("objective", NAMED)
def test_dense_gradient(objective, rng):
    logits, counts = rng.normal(size=(4, 7)), random_counts(rng, 4, 7)
    options = dense_options(objective, rng.normal(size=(4, 7)), rng.uniform(3, 9, 4))

    def value():
        return complement_loss(logits, counts, objective.alpha, **options)[0]

    _, dlogits = complement_loss(logits, counts, objective.alpha, **options)
    assert gradient_error(value, logits, dlogits) < 1e-8


def test_gradient_is_zero_at_the_target_when_alpha_is_one(rng):
    counts = random_counts(rng)
    _, dlogits = complement_loss(np.log(complement_distribution(counts)), counts, 1.0)
    np.testing.assert_allclose(dlogits, 0, atol=1e-16)


def test_the_contrast_goes_by_shares_whatever_the_counts_sum_to(rng):
    logits, counts = rng.normal(size=(4, 7)), random_counts(rng, 4, 7)
    value, dlogits = complement_loss(logits, counts, 0.0)
    less, dless = complement_loss(logits, counts / 1024, 0.0)  # T far below 1
    assert less == value
    np.testing.assert_array_equal(dless, dlogits)


@pytest.mark.parametrize("gap", [30.0, 300.0, 800.0, 1e5])
@pytest.mark.parametrize("counts", [[0, 0, 0], [2, 0, 0], [1, 3, 0]])
def test_a_token_may_be_as_sure_as_it_likes(gap, counts):
    logits, v = np.array([[gap, 0.0, 0.5]]), np.array([counts])
    for alpha in (0.0, 0.7):
        value, dlogits = complement_loss(logits, v, alpha)
        assert np.isfinite(value) and abs(dlogits.sum()) < 1e-14 * gap  # digits of z itself
        numeric = (
            complement_loss(logits + e, v, alpha)[0] - complement_loss(logits - e, v, alpha)[0]
            for e in 1e-4 * np.eye(3)
        )
        np.testing.assert_allclose(dlogits[0], [n / 2e-4 for n in numeric], atol=1e-10 * gap)


def test_a_base_may_rule_a_token_out():
    logits, masked = [[1.0, 2.0, 3.0]], [[0.0, 0.0, -1e4]]
    found = complement_loss(logits, [[1, 0, 0]], prior="reference", ref_logits=masked)
    nearly = complement_loss(
        logits, [[1, 0, 0]], prior="reference", ref_logits=[[0.0, 0.0, -100.0]]
    )
    for mine, theirs in zip(found, nearly, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-15)


def test_loss_keeps_float32_logits_in_float32(rng):
    logits, counts = rng.normal(size=(6, 11)).astype(np.float32), random_counts(rng)
    assert complement_loss(logits, counts)[1].dtype == np.float32
    assert complement_loss([[1, 2, 3]], [[0, 2, 1]])[1].dtype == np.float64
    both = (complement_loss(logits, counts, alpha)[0] for alpha in (0.5, np.float32(0.5)))
    assert next(both) == next(both)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: complement_loss(np.zeros((2, 3)), np.zeros((3, 3))), r"\(2, 3\)"),
        (lambda: complement_loss(np.zeros((2, 3)), np.zeros((2, 3)), 1.5), "alpha = 1.5"),
        (lambda: complement_loss(np.zeros((2, 3)), np.zeros((2, 3)), np.float32(2)), "alpha = "),
        (lambda: complement_loss(np.zeros((2, 3)), -np.ones((2, 3))), "expected 0 to 1e15"),
        (lambda: complement_loss([[0.0, np.nan]], [[1, 0]]), "logits: found NaN"),
        (lambda: complement_loss([[0.0, -np.inf]], [[1, 0]]), "logits: found NaN or infinite"),
        (lambda: complement_loss([[0.0]], [[1]]), "V >= 2"),
        (lambda: complement_loss([["a", "b"]], [[1, 0]]), "expected numbers"),
        (lambda: complement_loss([[1, 2], [3]], [[1, 0]]), "different lengths"),
        (lambda: complement_loss([[1.0, 2]], [[1, 0]], "x"), "alpha = 'x'"),
        (lambda: complement_loss([[1.0, 2]], [[1, 0]], prior="foo"), "prior: found 'foo'"),
        (
            lambda: complement_loss(
                [[1.0, 2]], [[1, 0]], prior="rate", ref_logits=[[1.0, 2]], attempts=[-3]
            ),
            "attempts: found -3, expected numbers from 0 on",
        ),
        (lambda: complement_loss([[1.0, 2]], [[1, 0]], contrast="foo"), "contrast: found 'foo'"),
        (
            lambda: complement_loss(
                [[1.0, 2]], [[1, 0]], prior="reference", ref_logits=[[1.0, 2, 3]]
            ),
            r"ref_logits: found shape \(1, 3\), expected \(1, 2\)",
        ),
        (
            lambda: complement_loss(np.zeros((2, 3)), np.ones((2, 3)), prior="reference"),
            "ref_logits",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call()


# -- the optimum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("contrast", ["plain", "ratio"])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("vocab", [2, 11])
def test_the_optimum_minimises_the_objective(alpha, vocab, contrast):
    """Against mirror descent on the same objective: a general minimiser on the simplex."""
    rng = np.random.default_rng(vocab)
    counts = random_counts(rng, 5, vocab)
    if contrast == "ratio":
        counts[np.arange(5), rng.integers(0, vocab, 5)] = 0  # it needs a token not rejected
        counts[counts.sum(axis=1) == 0] = np.eye(vocab, dtype=int)[0]
    P, w = complement_distribution(counts), complement.contrast_weights(counts, "plain")
    z_ref = rng.normal(size=P.shape) if contrast == "ratio" else None
    p_ref = None if z_ref is None else np.exp(complement.log_softmax(z_ref))
    best = complement.optimum(P, w, alpha, p_ref)
    np.testing.assert_allclose(best.sum(axis=1), 1, rtol=1e-12)
    z = np.zeros_like(P)
    for _ in range(600):
        _, dz = complement_loss(z, counts, alpha, contrast=contrast, ref_logits=z_ref)
        z -= 3.0 * len(z) * dz
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(best, p, atol=5e-5)


def test_the_gap_is_zero_at_the_optimum_and_one_far_away():
    counts = np.array([[0, 3, 0, 1]])
    P, w = complement_distribution(counts), complement.contrast_weights(counts, "plain")
    best = complement.optimum(P, w, 0.7)
    assert complement.optimality_gap(np.log(best), P, w, 0.7) == pytest.approx(0, abs=1e-12)
    far = np.array([[0.0, 100.0, 0.0, 0.0]])
    expected = 1 - best[0, 1]
    assert complement.optimality_gap(far, P, w, 0.7) == pytest.approx(expected)


# -- the fused loss --------------------------------------------------------------------------------


def rows_of(counts):
    """The sparse form of dense counts."""
    row, ids = np.nonzero(counts)
    n = len(counts)
    return RowCounts(
        weight=np.ones(n),
        alike=np.ones(n),
        total=counts.sum(axis=1).astype(float),
        depth=np.arange(n) % 3,
        rounds=np.full(n, 20.0),
        parent_entry=np.full(n, -1),
        entry_row=row,
        entry_id=ids,
        entry_count=counts[row, ids].astype(float),
    )


def dense_options(objective, ref_logits, attempts):
    return {
        "prior": objective.prior,
        "contrast": objective.contrast,
        "ref_logits": ref_logits if objective.needs_reference else None,
        "attempts": attempts if objective.prior == "rate" else None,
    }


@pytest.mark.parametrize("gap", [0, 1, 5, 10, 14, 15, 16, 17, 18, 30, 60, 88, 90, 100])
@pytest.mark.parametrize("which", ["rejected", "other"])
@pytest.mark.parametrize("objective", NAMED)
def test_fused_float32_is_dense_float64_at_any_gap(objective, which, gap):
    """The row's top token, rejected or not, stands `gap` above all others.

    float32 logits give sums over the vocabulary good to about 1e-7; nothing here may be worse than
    a few times that, whatever the gap. (Below `tiny` float32 itself loses digits.)
    """
    tiny = float(np.finfo(np.float32).tiny)
    rng = np.random.default_rng([gap, 7])
    counts = random_counts(rng, 8, 300)
    z = rng.normal(size=counts.shape).astype(np.float32)
    rejected = counts > 0
    top = (rejected if which == "rejected" else ~rejected).argmax(axis=1)
    z[np.arange(8), top] = z.max(axis=1) + np.float32(gap)
    z_ref = rng.normal(size=counts.shape).astype(np.float32)
    attempts = rng.uniform(5, 20, 8)
    options = dense_options(objective, z_ref, attempts)
    rows = rows_of(counts)

    exact, dz_exact = complement_loss(z.astype(np.float64), counts, objective.alpha, **options)
    values, dz = fused.row_losses(
        z.copy(), z_ref.copy(), rows._replace(attempts=options["attempts"]), objective
    )
    assert dz.dtype == np.float32 and np.isfinite(dz).all()
    assert values["loss"].mean() == pytest.approx(exact, rel=1e-6, abs=0)
    assert np.abs(dz / 8 - dz_exact).max() <= 1e-6 * np.abs(dz_exact).max() + tiny

    for part, alpha in (("kl", 1.0), ("contrast", 0.0)):
        exact, _ = complement_loss(z.astype(np.float64), counts, alpha, **options)
        assert values[part].mean() == pytest.approx(exact, rel=1e-6, abs=0)


@pytest.mark.parametrize("objective", [o for o in CHOICES if o.alpha > 0], ids=str)
def test_fused_metrics_are_the_dense_ones(objective, rng):
    counts = random_counts(rng, 8, 300)
    z = 3 * rng.normal(size=counts.shape).astype(np.float32)
    z_ref = z + rng.normal(size=counts.shape).astype(np.float32)
    attempts = rng.uniform(5, 20, 8)
    options = dense_options(objective, z_ref, attempts)
    values = fused.row_metrics(
        z.copy(), z_ref.copy(), rows_of(counts)._replace(attempts=options["attempts"]), objective
    )

    def softmax(z):
        z = z.astype(np.float64)
        return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)

    p, p_ref = softmax(z), softmax(z_ref)
    share = counts / counts.sum(axis=1, keepdims=True)
    P = complement.target_distribution(counts, objective.prior, z_ref, options["attempts"])
    w = complement.contrast_weights(counts, objective.contrast, z_ref)
    rest = (objective.alpha, p_ref if objective.contrast == "ratio" else None)
    expected = {
        "entropy": -(p * np.log(p)).sum(axis=1),
        "kl_to_base": (p_ref * np.log(p_ref / p)).sum(axis=1),
        "rejected_mass": (share * p).sum(axis=1),
        "optimal_rejected_mass": (share * complement.optimum(P, w, *rest)).sum(axis=1),
        "optimality_gap": complement.optimality_gap(z, P, w, *rest),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-5, atol=1e-7, err_msg=name)
    first = np.arange(8) % 3 == 0
    np.testing.assert_array_equal(values["first"], first)
    np.testing.assert_allclose(values["first_rejected_mass"], first * values["rejected_mass"])


def head_case(rng, dtype, n=400, vocab=2000, dim=8):
    """Arguments of `head_loss` up to the objective's, and the base's hidden states.

    The rows are answers of three tokens, of so many rounds that the rate prior's attempts come from
    the rows before.
    """
    rows = rows_of(random_counts(rng, n, vocab, density=4 / vocab))
    first_entry = np.searchsorted(rows.entry_row, np.arange(n))
    parent_entry = np.where(rows.depth > 0, np.roll(first_entry, 1), -1)
    rows = rows._replace(parent_entry=parent_entry, rounds=np.full(n, 1e6))
    hidden, ref_hidden = rng.normal(size=(2, n, dim)).astype(dtype)
    return hidden, rng.normal(size=(vocab, dim)).astype(dtype), rows, ref_hidden


@pytest.mark.parametrize("objective", NAMED)
def test_the_head_never_holds_all_logits(objective, rng, monkeypatch):
    """No array of (rows, V) ever exists whole: the largest allocation stays a chunk's."""
    import tracemalloc

    hidden, head, rows, ref_hidden = head_case(rng, np.float32)

    def peak(chunk_rows):
        monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk_rows * len(head))
        tracemalloc.start()
        loss.head_loss(
            hidden, head, rows, TargetLoss(objective), ref_hidden, total_rows=len(hidden)
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    whole = len(hidden) * len(head) * 4
    assert peak(chunk_rows=10) < whole / 2
    assert peak(len(hidden)) > whole  # the measure sees the whole array where there is one


@pytest.mark.parametrize("chunk_rows", [1, 7, 10, 59])
@pytest.mark.parametrize("objective", NAMED)
def test_chunks_of_any_size_give_the_same_gradient(objective, chunk_rows, rng, monkeypatch):
    """In float64, where only the order of sums may differ: a few hundred roundings of 1e-16.

    In float32 it is the logits that round: of size 16, each by 1e-6, and p by as much of itself.
    How BLAS blocks a product then decides the sixth digit, and no tolerance tells that from a
    fault.
    """
    hidden, head, rows, ref_hidden = head_case(rng, np.float64, n=60, vocab=300)

    def run(chunk_rows):
        monkeypatch.setattr(loss, "CHUNK_LOGITS", chunk_rows * len(head))
        return loss.head_loss(
            hidden, head, rows, TargetLoss(objective), ref_hidden, total_rows=len(hidden)
        )

    metrics, dhidden = run(chunk_rows)
    at_once, dhidden_at_once = run(len(hidden))
    assert metrics.keys() == at_once.keys() >= {"loss"}
    for name, value in metrics.items():
        assert value == pytest.approx(at_once[name], rel=1e-12), name
    np.testing.assert_allclose(dhidden, dhidden_at_once, atol=1e-12 * np.abs(dhidden).max())
