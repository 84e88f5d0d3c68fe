"""A row of a loss of whole rejected answers worked through as text: the answers, loss, gradient."""

from collections.abc import Iterator

import numpy as np

from minibule.core.complement import log_softmax
from minibule.core.counts import row_count
from minibule.core.loss import SeparableLoss
from minibule.explain.row import (
    CHARGES,
    Anchor,
    Column,
    Row,
    anchor_of,
    explain_base,
    lets_go,
    pushed_gradient,
    token_table,
)
from minibule.explain.subject import Subject, WorkedAnswers
from minibule.explain.text import decimals, decimals_for, heading, prose, table
from minibule.machine.matrix import Array

MOST_ANSWERS = 8  # of those through the row


def explain_answers(
    row: Row,
    loss: SeparableLoss,
    subject: Subject,
    answers: WorkedAnswers,
    shown_in: str = "",
) -> Iterator[str]:
    """Three sections of text, line by line; shown_in as in `checked_gradient`."""
    anchor = anchor_of(row)
    shown = row.shown(np.exp(log_softmax(row.z_ref)))
    yield from explain_base(row, anchor, loss.needs_reference, shown)
    a = np.bincount(row.counts.entry_id, row.counts.slope, len(row.z))
    yield from _answers(row, loss, subject, answers)
    yield from _loss(row, anchor, a, shown)
    made_of = "     a(i) = sum of a(y) over the answers that go on with token i, divided by n"
    remarks = [lets_go("(y)")] if loss.needs_reference else []
    code = "core.softmax.log_probs_backward"
    yield from pushed_gradient(row, shown, a, anchor, made_of, remarks, code, shown_in)


def _answers(
    row: Row, loss: SeparableLoss, subject: Subject, answers: WorkedAnswers
) -> Iterator[str]:
    """What pushes: the answers through the row, each as a whole."""
    yield from heading(4, "The loss")
    yield from prose(
        "An answer was rejected, not a token: the loss looks at log p(y), the sum of log p over "
        "the tokens of an answer y, and pushes each of its tokens with one slope a(y). Of section "
        "2's answers these go through this row:"
    )
    t = subject.place.position - 1
    prefix = subject.example.answers[subject.place.answer - 1][:t]
    relative = loss.needs_reference
    x, f, df, a = (decimals_for(part, row.digits) for part in answers)
    body = [
        [
            str(k + 1),
            row.name(int(answer[t])),
            f"{times:,}",
            x(answers.x[k]),
            f(answers.f[k]),
            df(answers.df[k]),
            a(answers.slope[k]),
        ]
        for k, (answer, times) in enumerate(
            zip(subject.example.answers, subject.example.counts, strict=True)
        )
        if len(answer) > t and np.array_equal(answer[:t], prefix)
    ]
    log = "log r(y)" if relative else "log p(y)"
    header = ["answer", "token here", "v(y)", log, "f", "slope of f", "a(y)"]
    yield from table(header, body[:MOST_ANSWERS], left=2)
    if len(body) > MOST_ANSWERS:
        yield f"     ... {len(body) - MOST_ANSWERS:,} more answers"
    yield ""
    yield f"     f = {loss.formula}" + ("          r(y) = p(y) / p_ref(y)" if relative else "")
    rows = row_count([subject.example])
    numbers = ", ".join(f"{n} = {v:g}" for n, v in vars(loss).items() if n != "kl")
    yield f"     {numbers}          n = {len(body):,}, the answers that begin as this one does"
    yield f"     a(y) = {loss.share} times the slope of f          R = {rows:,}, this record's rows"


def _loss(row: Row, anchor: Anchor | None, a: Array, shown: list[int]) -> Iterator[str]:
    """The row's part of the loss, with the slopes standing still."""
    logp = log_softmax(row.z)
    part = decimals_for(np.append(a * logp, anchor.terms if anchor else 0), row.digits)
    yield from prose(
        "Of that this row's share is the sum of a(i) log p(i), where a(i) is what the answers with "
        "token i here push together, and stands still."
        + (f" Added is how far p is from p_ref. {CHARGES}" if anchor else "")
    )
    columns = {
        "a": Column(a, decimals_for(a, row.digits)),
        "log p": Column(logp, decimals(row.digits), adds=False),
        "a log p": Column(a * logp, part),
    }
    written, value = "row loss = sum_i a(i) log p(i)", part(float(a @ logp))
    if anchor:
        yield anchor.formula
        columns |= anchor.terms_column(part)
        written += f" + kl KL(p || p_ref) = {value} + {anchor.share(part)}"
        value = part(row.loss_at(row.z)[0])
    yield from token_table(row, shown, columns)
    yield ""
    yield f"     {written} = {value}"
