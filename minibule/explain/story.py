"""One gradient from start to end: a row of a record, and what it does to an adapter.

    python -m minibule.explain                              the embedded model, its first record
    python -m minibule.explain --record 3 --position 2      another row
    python -m minibule.explain --tiny-vocab                 five tokens, to follow with a pencil

Every number is computed by the code that training runs, or by its dense and readable form.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from minibule.core.complement import log_softmax
from minibule.core.counts import Example
from minibule.core.fused import TargetLoss
from minibule.core.head import entry_log_probs
from minibule.core.llama import Llama, backward, forward_batch
from minibule.core.lora import Adapter, init_adapter, lora_name
from minibule.core.loss import RowLoss, SeparableLoss
from minibule.errors import InputError
from minibule.explain.adapter import (
    explain_another,
    explain_lora,
    explain_step,
    module_to_check,
    one_step,
)
from minibule.explain.answers import explain_answers
from minibule.explain.check import AdapterCheck
from minibule.explain.complement import explain_complement
from minibule.explain.row import Row
from minibule.explain.subject import (
    Place,
    Pushed,
    RowPass,
    Subject,
    one_pass,
    row_counts,
    subject_under,
    worked,
    worked_by,
)
from minibule.explain.text import WIDTH, heading, prose, shortened, table
from minibule.explain.tokens import explain_tokens
from minibule.machine.matrix import Array
from minibule.methods.table import LOSSES
from minibule.methods.tokens import TokenLoss
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.records.records import read_records
from minibule.runs.settings import TrainConfig
from minibule.text.chat import Chat
from minibule.text.examples import tokenize

Explained = RowLoss | SeparableLoss

MOST_LINES = 8  # of the context, and of the record's answers


# -- the embedded or the user's own model ----------------------------------------------------------


class Scene(NamedTuple):
    """A model with its adapter, the row of a record that is explained, and what to say first.

    asked    the prompt, or the last message of it
    module   the pair that is checked beside the uppermost
    """

    config: TrainConfig
    model: Llama
    chat: Chat
    adapter: Adapter
    asked: str
    subject: Subject
    module: str
    title: list[str]

    def name(self, token: int) -> str:
        return _token_name(self.chat, token)

    def logits(self, hidden: Array) -> Array:
        """Of the row, in float64: (V,) from the hidden states of all rows."""
        return (hidden[self.subject.row] @ self.model.head.T).astype(np.float64)


class Passed(NamedTuple):
    """The row, what a forward pass left, and the base's hidden states of all rows."""

    row: Row
    before: RowPass
    ref_hidden: Array


def passed(scene: Scene) -> Passed:
    """Put the row through the model."""
    subject, batch = scene.subject, scene.subject.batch
    ref_hidden, _ = forward_batch(scene.model.base, batch)
    before = one_pass(scene.model, scene.adapter, subject.alone, ref_hidden)
    counts = row_counts(subject, entry_log_probs(ref_hidden, scene.model.head, batch.rows))
    z, z_ref = scene.logits(before.hidden), scene.logits(ref_hidden)
    return Passed(Row(z, z_ref, counts, subject.loss, scene.name), before, ref_hidden)


def scene_of(config: TrainConfig, place: Place, module: str = "") -> Scene:
    """Read what there is to explain.

    Parameters
    ----------
    config : TrainConfig
        Names the model, data, objective and learning rate, and in `init_adapter` the adapter;
        empty = a fresh one.
    place : Place
        Which row of which record.
    module : str
        The pair that is checked beside the uppermost, by the end of its name; empty = the lowest.

    Raises
    ------
    InputError
        If a file cannot be read, or has no such record, answer or position.
    """
    source, data, _ = config.resolved_files()
    records = read_records(data)
    _check("--record", place.record, len(records), f"{data} has", "records")
    record = records[place.record - 1]
    where = f"record {place.record}"
    model, chat = load_model(source, config.init_adapter or None), load_chat(source)
    try:
        limit = min(config.max_length, model.config.max_position_embeddings)
        examples = tokenize([record], chat, limit)
    except InputError as error:
        raise InputError(f"--record {place.record}: {error}") from None
    if not examples:
        raise InputError(f"--record {place.record}: the tokenizer leaves nothing of its answers.")
    (example,) = examples
    _check("--answer", place.answer, len(example.answers), f"{where} has", "rejected answers")
    length = len(example.answers[place.answer - 1])
    _check("--position", place.position, length, f"answer {place.answer} of {where} has", "tokens")
    if model.adapter is None:
        lora = config.resolved_lora(model.config.num_hidden_layers)
        model.adapter = init_adapter(lora, model.config, config.seed)
    loss = explained_loss(config)
    title = [
        f"model      {config.model or 'embedded'}, adapter {config.init_adapter or 'fresh: B = 0'}",
        f"row        record {place.record} of {len(records):,}, answer {place.answer} of "
        f"{len(example.answers):,}, position {place.position} of {length:,}",
        f"objective  {config.objective}: {loss}",
    ]
    subject = subject_under(loss, example, place, lambda whole: worked_by(model, whole, example))
    chosen = module_to_check(module, model.adapter.config.modules)
    prompt = record.prompt
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return Scene(config, model, chat, model.adapter, asked, subject, chosen, title)


def explained_loss(config: TrainConfig) -> Explained:
    """The loss that the settings name; InputError if it is of more than rejected answers."""
    loss = config.resolved_loss()
    if loss.uses == "rejected" and isinstance(loss, Explained):
        return loss
    known = ", ".join(name for name, other in LOSSES.items() if other.uses == "rejected")
    raise InputError(
        f"--objective {config.objective}: it learns from accepted answers too, and here a row of "
        f"rejected ones is explained. Expected one of {known}."
    )


def _check(flag: str, value: int, most: int, owner: str, things: str) -> None:
    if not 1 <= value <= most:
        things = things if most > 1 else things.removesuffix("s")
        raise InputError(f"{flag} {value}: {owner} {most:,} {things}, expected 1 to {most:,}.")


def explain(scene: Scene) -> Iterator[str]:
    """The whole explanation of a row, line by line, none wider than 100 columns."""
    config, model, chat, adapter, _, subject, module, title = scene
    yield from (shortened(line, WIDTH) for line in title)
    yield from _context(chat, subject)
    yield from _counts(subject, scene.name, chat.decode)
    row, before, ref_hidden = passed(scene)
    yield from _explain_row(row, subject, "Section 7")

    top, check = adapter.config.modules[-1], AdapterCheck(model, subject.alone)
    yield from explain_lora(adapter, top, row, before.dhidden[subject.row], check)
    if module != top:
        yield from explain_another(adapter, module, model, subject)

    kept = {n: p.copy() for n, p in adapter.params.items()}
    predicted = one_step(adapter, backward(before.dhidden, before.cache), config)
    after = one_pass(model, adapter, subject.alone, ref_hidden)
    losses = (before.loss, after.loss)
    yield from explain_step(config.lr, row, scene.logits(after.hidden), losses, predicted)
    if not np.any(kept[lora_name(top, "B")]):
        yield ""
        yield from prose("B is no longer 0, so the gradient now reaches A as well:")
        yield from check.lines(adapter, top, "A")


# -- 1 and 2: where the row stands -----------------------------------------------------------------


def _context(chat: Chat, subject: Subject) -> Iterator[str]:
    """The prompt's control tokens and texts, one a line, and the answer so far."""
    example, place = subject.example, subject.place
    prefix = example.answers[place.answer - 1][: place.position - 1]
    yield from heading(1, "The context")
    yield from prose(
        f"The model has read {len(example.prompt) + len(prefix):,} tokens and predicts the next. "
        "Text is shown in quotes, control tokens without."
    )
    lines = [""]
    text: list[int] = []
    for token in [*example.prompt.tolist(), None]:
        control = token is not None and not chat.decode([token])
        if token is not None and not control:
            text.append(token)
            continue
        if text:
            lines[-1] += f" {chat.decode(text)!r}"
            text = []
        if control:
            lines.append(_token_name(chat, token))
    lines = [shortened(line.strip(), WIDTH - 5) for line in lines if line]
    if len(lines) > MOST_LINES:
        yield f"     ... {len(lines) - MOST_LINES:,} earlier lines"
    yield from (f"     {line}" for line in lines[-MOST_LINES:])
    said = (
        repr(chat.decode(prefix))
        if len(prefix)
        else "nothing yet, the row predicts its first token"
    )
    yield f"   The answer so far: {shortened(said, WIDTH - 22)}"


def _token_name(chat: Chat, token: int) -> str:
    """Text in quotes; a control token, which has no text, as it is spelled."""
    text = chat.decode([token])
    if not text:
        return chat.tokenizer.id_to_token(token) or f"token {token}"
    return f"token {token} (bytes)" if "\ufffd" in text else shortened(repr(text), 20)


def _counts(
    subject: Subject, name: Callable[[int], str], decode: Callable[[Array], str]
) -> Iterator[str]:
    """The record's answers and which of them the row counts, and v from the packed batch."""
    example, place, counts = subject.example, subject.place, subject.counts
    yield from heading(2, "The counts v")
    yield from prose(
        "v(i) is how often token i was rejected here. "
        + (
            "counts = prefix: an answer counts if it begins like this one."
            if subject.loss.counts == "prefix"
            else "counts = position: every answer that is long enough counts, however it begins."
        )
    )
    t = place.position - 1
    prefix = example.answers[place.answer - 1][:t]
    body = []
    for k, (answer, times) in enumerate(zip(example.answers, example.counts, strict=True)):
        if len(answer) <= t:
            here = "ends before"
        elif subject.loss.counts == "prefix" and not np.array_equal(answer[:t], prefix):
            here = "begins differently"
        else:
            here = name(answer[t])
        body.append([str(k + 1), shortened(repr(decode(answer)), 44), here, f"{times:,}"])
    yield from table(["", "rejected answer", "its token here", "times"], body[:MOST_LINES], left=3)
    if len(body) > MOST_LINES:
        yield f"     ... {len(body) - MOST_LINES:,} more answers"
    v = sorted(zip(counts.entry_count, counts.entry_id, strict=True), reverse=True)
    listed = ", ".join(f"v({name(i)}) = {count:,.0f}" for count, i in v[:MOST_LINES])
    more = f"{len(v) - MOST_LINES:,} more tokens, " if len(v) > MOST_LINES else ""
    yield from prose(f"So {listed}, {more}and 0 for all other tokens. Their sum is")
    yield f"     T = sum_i v(i) = {counts.total[0]:,.0f}"


# -- 3 to 5: its loss ------------------------------------------------------------------------------


def _explain_row(row: Row, subject: Subject, shown_in: str = "") -> Iterator[str]:
    loss = row.loss
    if isinstance(loss, TargetLoss):
        yield from explain_complement(row, loss, shown_in)
    elif isinstance(loss, TokenLoss):
        yield from explain_tokens(row, loss, shown_in)
    elif isinstance(loss, Pushed) and subject.answers:
        yield from explain_answers(row, loss.of, subject, subject.answers, shown_in)


# -- five tokens -----------------------------------------------------------------------------------

# Logits ln 8, ln 4, ln 2, 0, 0: exp(z) sums to 16. Counts 3 and 2: every other number stays short.
TINY_VOCAB = ("hello", "no", "Hi!", "Welcome!", "Good day!")
TINY_LOGITS = np.log([8.0, 4.0, 2.0, 1.0, 1.0])
TINY_RECORD = Example(np.array([0]), (np.array([0]), np.array([1])), (3, 2), total_rounds=16)


def explain_tiny_vocab(loss: Explained) -> Iterator[str]:
    """`explain` in a world of five tokens, small enough to follow with a pencil: sections 2 to 5.

    The base model predicts the same as the model: the moment before the first step.
    """

    def name(token: int) -> str:
        return repr(TINY_VOCAB[token])

    logp = log_softmax(TINY_LOGITS)[:2]  # of the record's answers, one token each
    x = np.zeros(2) if loss.needs_reference else logp
    subject = subject_under(loss, TINY_RECORD, Place(), lambda whole: worked(whole, TINY_RECORD, x))

    yield from prose(
        "Five tokens, each of them a whole answer. The prompt is 'hello'. Among 16 sampled answers "
        "'hello' was rejected 3 times and 'no' twice."
    )
    yield from _counts(subject, name, lambda ids: TINY_VOCAB[ids[0]])
    counts = row_counts(subject, log_softmax(TINY_LOGITS)[subject.counts.entry_id])
    row = Row(TINY_LOGITS, TINY_LOGITS, counts, subject.loss, name)
    yield from _explain_row(row, subject)
