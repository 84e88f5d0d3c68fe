"""One gradient from start to end: a row of a record, and what it does to an adapter.

    python -m minibule.explain                              the embedded model, its first record
    python -m minibule.explain --record 3 --position 2      another row
    python -m minibule.explain --tiny-vocab                 five tokens, to follow with a pencil

Every number is computed by the code that training runs, or by its dense and readable form.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibule.chat import Chat, load_chat
from minibule.checkpoint import load_adapter, load_model
from minibule.complement import log_softmax
from minibule.config import (
    LoraConfig,
    Objective,
    TrainConfig,
    add_settings,
    embedded_folder,
    module_names,
    resolve,
)
from minibule.errors import InputError, run
from minibule.examples import tokenize
from minibule.forest import Batch, Example, Rows, pack
from minibule.llama import ForwardCache, Llama, backward, forward_batch
from minibule.lora import Adapter, init_adapter, lora_name
from minibule.loss import entry_log_probs, head_loss, path_log_probs
from minibule.ops import Array
from minibule.optim import AdamW, clip_gradients
from minibule.records import read_records
from minibule.worked_row import (
    WIDTH,
    Row,
    central_difference,
    decimals,
    decimals_for,
    explain_row,
    heading,
    prose,
    shortened,
    table,
    verdict,
)

MOST_LINES = 8  # of the context, and of the record's answers


class Place(NamedTuple):
    """Which row: its record in the file, the rejected answer it lies on, the token it predicts.

    All three count from 1.
    """

    record: int = 1
    answer: int = 1
    position: int = 1


class Subject(NamedTuple):
    """One record packed as training packs it, and one row of it.

    batch    the record up to the row in one stream: what follows the row cannot change it
    row      which of the batch's rows it is
    """

    example: Example
    batch: Batch
    row: int
    place: Place
    objective: Objective

    @property
    def counts(self) -> Rows:
        """The row alone."""
        return self.batch.rows.part(slice(self.row, self.row + 1))

    @property
    def alone(self) -> Rows:
        """All rows of the batch, of which none but this one counts."""
        weight = np.zeros(len(self.batch.stream))
        weight[self.row] = 1
        return self.batch.rows._replace(weight=weight)


def subject_of(example: Example, place: Place, objective: Objective) -> Subject:
    """Pack the example up to the row at `place`."""
    answers = tuple(answer[: place.position] for answer in example.answers)
    size = len(example.prompt) + sum(map(len, answers))
    (batch,) = pack([example._replace(answers=answers)], objective.counts, pass_tokens=size)
    row = batch.rows.entry_row[batch.answer_entry[place.answer - 1]]  # its last token's
    return Subject(example, batch, int(row), place, objective)


# -- the embedded or the user's own model ----------------------------------------------------------


def explain(config: TrainConfig, place: Place) -> Iterator[str]:
    """The whole explanation of one row, line by line, none wider than 100 columns.

    Parameters
    ----------
    config : TrainConfig
        Names the model, data, objective and learning rate, and in `init_adapter` the adapter;
        empty = a fresh one.
    place : Place
        Which row of which record.

    Raises
    ------
    InputError
        Before the first line: if a file cannot be read, or has no such record, answer or position.
    """
    if config.model and not config.data:
        raise InputError("--model without --data: expected a file of rejection records too.")
    source = config.model or embedded_folder()
    data = Path(config.data or embedded_folder() / "records.jsonl")
    records = read_records(data)
    _check("--record", place.record, len(records), f"{data} has", "records")
    record = records[place.record - 1]
    where = f"record {place.record}"
    _check("--answer", place.answer, len(record.rejected), f"{where} has", "rejected answers")
    model, chat = load_model(source), load_chat(source)
    try:
        (example,) = tokenize([record], chat, config, model.config.max_position_embeddings)
    except InputError as error:
        raise InputError(f"--record {place.record}: {error}") from None
    length = len(example.answers[place.answer - 1])
    _check("--position", place.position, length, f"answer {place.answer} of {where} has", "tokens")
    if config.init_adapter:
        model.adapter = load_adapter(config.init_adapter, model.config)
    else:
        layers = range(model.config.num_hidden_layers)
        modules = module_names(layers, config.lora_targets)
        lora = LoraConfig(config.lora_r, config.lora_alpha, modules, config.rslora)
        model.adapter = init_adapter(lora, model.config, config.seed)
    objective = config.resolved_objective()
    title = [
        f"model      {config.model or 'embedded'}, adapter {config.init_adapter or 'fresh: B = 0'}",
        f"row        record {place.record} of {len(records):,}, answer {place.answer} of "
        f"{len(example.answers):,}, position {place.position} of {length:,}",
        _objective_line(config.objective, objective),
    ]
    subject = subject_of(example, place, objective)
    return _whole_story(config, model, chat, model.adapter, subject, title)


def _check(flag: str, value: int, most: int, owner: str, things: str) -> None:
    if not 1 <= value <= most:
        things = things if most > 1 else things.removesuffix("s")
        raise InputError(f"{flag} {value}: {owner} {most:,} {things}, expected 1 to {most:,}.")


def _objective_line(name: str, objective: Objective) -> str:
    return (
        f"objective  {name}: prior {objective.prior}, counts {objective.counts}, "
        f"contrast {objective.contrast}, alpha {objective.alpha:g}"
    )


def _whole_story(
    config: TrainConfig,
    model: Llama,
    chat: Chat,
    adapter: Adapter,
    subject: Subject,
    title: list[str],
) -> Iterator[str]:
    def name(token: int) -> str:
        return _token_name(chat, token)

    def logits(hidden: Array) -> Array:
        return (hidden[subject.row] @ model.head.T).astype(np.float64)

    batch, objective = subject.batch, subject.objective
    yield from (shortened(line, WIDTH) for line in title)
    yield from _context(chat, subject)
    yield from _counts(subject, name, chat.decode)

    ref_hidden, _ = forward_batch(model, batch, None)
    before = _one_pass(model, adapter, subject, ref_hidden)
    attempts = _attempts(subject, entry_log_probs(ref_hidden, model.head, batch.rows))
    z = logits(before.hidden)
    row = Row(z, logits(ref_hidden), attempts, subject.counts, objective, name)
    yield from explain_row(row)

    module = adapter.config.modules[-1]
    check = _Check(model, subject, module)
    yield from _into_lora(adapter, module, row, before.dhidden[subject.row], check)

    grads = backward(before.dhidden, before.cache)
    kept = {n: p.copy() for n, p in adapter.params.items()}
    clip_gradients(grads, config.max_grad_norm)
    AdamW(adapter.params, config.weight_decay).step(grads, config.lr)
    foretold = sum(float(np.vdot(grads[n], p - kept[n])) for n, p in adapter.params.items())
    after = _one_pass(model, adapter, subject, ref_hidden)
    yield from _one_step(config, row, logits(after.hidden), (before.loss, after.loss), foretold)
    if not np.any(kept[lora_name(module, "B")]):
        yield ""
        yield from prose("B is no longer 0, and now the gradient reaches A as well:")
        yield from check.lines(adapter, "A")


class _Pass(NamedTuple):
    hidden: Array
    cache: ForwardCache
    loss: float
    dhidden: Array


def _one_pass(model: Llama, adapter: Adapter, subject: Subject, ref_hidden: Array) -> _Pass:
    """Forward and loss of a step that consists of this row."""
    hidden, cache = forward_batch(model, subject.batch, adapter, keep=True)
    objective = subject.objective
    metrics, dhidden = head_loss(hidden, model.head, subject.alone, objective, ref_hidden, count=1)
    return _Pass(hidden, cache, metrics["loss"], dhidden)


def _attempts(subject: Subject, ref_logp: Array) -> Array | None:
    """How many of the sampled answers are expected to have come by the row, (1,), for `rate`."""
    if subject.objective.prior != "rate":
        return None
    prefix, _ = path_log_probs(subject.batch.rows, ref_logp)
    expected = subject.counts.rounds * np.exp(prefix[subject.row])
    return np.maximum(subject.counts.total, expected)


# -- 1 and 2: where the row stands -----------------------------------------------------------------


def _context(chat: Chat, subject: Subject) -> Iterator[str]:
    """The prompt's control tokens and texts, one a line, and the answer so far."""
    example, place = subject.example, subject.place
    prefix = example.answers[place.answer - 1][: place.position - 1]
    yield from heading(1, "The context")
    yield from prose(
        f"The model has read {len(example.prompt) + len(prefix):,} tokens when it says the next. "
        "Control tokens stand bare, text in quotes."
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
        yield f"     ... {len(lines) - MOST_LINES:,} lines before"
    yield from (f"     {line}" for line in lines[-MOST_LINES:])
    said = repr(chat.decode(prefix)) if len(prefix) else "nothing, the row is its first token"
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
            "counts = prefix: an answer counts if it begins as this one does."
            if subject.objective.counts == "prefix"
            else "counts = position: every answer counts that is long enough, however it begins."
        )
    )
    t = place.position - 1
    prefix = example.answers[place.answer - 1][:t]
    body = []
    for k, (answer, times) in enumerate(zip(example.answers, example.counts, strict=True)):
        if len(answer) <= t:
            here = "ends before"
        elif subject.objective.counts == "prefix" and not np.array_equal(answer[:t], prefix):
            here = "begins otherwise"
        else:
            here = name(answer[t])
        body.append([str(k + 1), shortened(repr(decode(answer)), 44), here, f"{times:,}"])
    yield from table(["", "rejected answer", "its token here", "times"], body[:MOST_LINES], left=3)
    if len(body) > MOST_LINES:
        yield f"     ... {len(body) - MOST_LINES:,} answers more"
    v = sorted(zip(counts.entry_count, counts.entry_id, strict=True), reverse=True)
    listed = ", ".join(f"v({name(i)}) = {count:,.0f}" for count, i in v[:MOST_LINES])
    more = f"{len(v) - MOST_LINES:,} tokens more, " if len(v) > MOST_LINES else ""
    yield from prose(f"So {listed}, {more}and 0 for all other tokens. Their sum is")
    yield f"     T = sum_i v(i) = {counts.total[0]:,.0f}"


# -- 6 and 7: into the adapter ---------------------------------------------------------------------


class _Float64(dict[str, Array]):
    """Weights widened one by one as they are asked for: twice the model need not fit in memory."""

    def __getitem__(self, name: str) -> Array:
        return super().__getitem__(name).astype(np.float64)


class _Check:
    """The gradient of one LoRA pair against central differences, the whole model in float64."""

    def __init__(self, model: Llama, subject: Subject, module: str) -> None:
        self.model, self.subject, self.module = model, subject, module
        self.wide = Llama(model.config, _Float64(model.weights))
        self.ref_hidden, _ = forward_batch(self.wide, subject.batch, None)

    def lines(
        self, adapter: Adapter, matrices: str, above: Sequence[Sequence[str]] = ()
    ) -> Iterator[str]:
        """A table of dB and dA, as `matrices` says, below the rows `above`, and the verdict."""
        # Backward goes down to the lowest module of the config, here the one that is looked at.
        config = dataclasses.replace(adapter.config, modules=(self.module,))
        wide = Adapter(config, {n: p.astype(np.float64) for n, p in adapter.params.items()})

        def one_pass() -> _Pass:
            return _one_pass(self.wide, wide, self.subject, self.ref_hidden)

        now = one_pass()
        grads = backward(now.dhidden, now.cache)
        body, pairs = list(above), []
        for matrix in matrices:
            name = lora_name(self.module, matrix)
            grad = grads[name]
            index = tuple(int(i) for i in np.unravel_index(np.abs(grad).argmax(), grad.shape))
            pair = (
                central_difference(lambda: one_pass().loss, wide.params[name], index),
                float(grad[index]),
            )
            show = decimals_for(np.array(pair), 6)
            norm = f"{np.linalg.norm(grad):.3g}"
            place = f"[{index[0]}, {index[1]}]" if grad.any() else ""
            body.append([f"d{matrix}", str(grad.shape), norm, place, show(pair[1]), show(pair[0])])
            pairs.append(pair)
        numeric, gradient = np.array(pairs).T
        yield from table(["", "shape", "norm", "largest at", "there", "numeric"], body)
        z = now.hidden[self.subject.row] @ self.wide.head.T
        yield from prose(verdict(numeric, gradient, z))


def _into_lora(adapter: Adapter, module: str, row: Row, dh: Array, check: _Check) -> Iterator[str]:
    """How the gradient comes to one LoRA pair, and what it is there."""
    yield from heading(6, "On into LoRA")
    yield from prose(
        "The head W takes the gradient to the model's last hidden state: dh = dz W. From there it "
        "runs down through the layers to the output y of every adapted projection, as dy. The "
        "uppermost is"
    )
    yield f"     {module}"
    yield f"     y  = x W^T + s (x A^T) B^T          s = {adapter.config.scaling(module):g}"
    yield "     dB = s dy^T (x A^T)          dA = s (dy B)^T x          no dW: W is frozen"
    yield from prose(
        "Where each is largest, the loss is asked again: that entry of B or A moved up and down, "
        "the whole model run in float64."
    )
    yield from check.lines(adapter, "BA", [_sizes("dz", row.loss(row.z)[1]), _sizes("dh", dh)])
    if not np.any(adapter.params[lora_name(module, "B")]):
        yield from prose(
            "A fresh adapter has B = 0, so that it changes nothing yet. Then dA = s (dy B)^T x is "
            "0 too: the first step moves B alone."
        )


def _sizes(name: str, x: Array) -> list[str]:
    return [name, f"({len(x)},)", f"{np.linalg.norm(x):.3g}", "", "", ""]


def _one_step(
    config: TrainConfig, row: Row, z: Array, losses: tuple[float, float], foretold: float
) -> Iterator[str]:
    """What the step did: p of the tokens that matter, and the loss, before and after."""
    before, after = np.exp(log_softmax(row.z)), np.exp(log_softmax(z))
    yield from heading(7, "One step")
    yield from prose(
        f"One step of AdamW on this row alone, all pairs, learning rate {config.lr:g}. A first "
        "step moves every entry by about the learning rate, whatever the size of its gradient."
    )
    share = decimals(6)
    rest = np.ones(len(before), bool)
    shown = row.shown(before, before)
    rest[shown] = False
    body = [
        [
            row.name(i),
            decimals(0)(row.v[i]),
            *map(share, (before[i], after[i], after[i] - before[i])),
        ]
        for i in shown
    ]
    was, now = before[rest].sum(), after[rest].sum()
    body.append([f"all others ({rest.sum():,})", "0", *map(share, (was, now, now - was))])
    yield from table(["token", "v", "p before", "p after", "change"], body)
    show = decimals_for(np.array(losses), 6)
    yield from prose(
        f"The row's loss: {show(losses[0])} -> {show(losses[1])}, a change of "
        f"{show(losses[1] - losses[0])}. The gradient times the change of every entry foretold "
        f"{show(foretold)}; the rest is curvature."
    )


# -- five tokens -----------------------------------------------------------------------------------

# Logits ln 8, ln 4, ln 2, 0, 0: exp(z) sums to 16. Counts 3 and 2: every other number stays short.
TINY_VOCAB = ("hello", "no", "Hi!", "Welcome!", "Good day!")
TINY_LOGITS = np.log([8.0, 4.0, 2.0, 1.0, 1.0])
TINY_RECORD = Example(np.array([0]), (np.array([0]), np.array([1])), (3, 2), total_rounds=16)


def explain_tiny_vocab(objective: Objective) -> Iterator[str]:
    """`explain` in a world of five tokens, small enough to follow with a pencil: sections 2 to 5.

    The base model says the same as the model: the moment before the first step.
    """

    def name(token: int) -> str:
        return repr(TINY_VOCAB[token])

    subject = subject_of(TINY_RECORD, Place(), objective)
    yield from prose(
        "Five tokens, each of them a whole answer. The prompt is 'hello'. Of 16 sampled answers "
        "'hello' was rejected 3 times and 'no' twice."
    )
    yield from _counts(subject, name, lambda ids: TINY_VOCAB[ids[0]])
    attempts = _attempts(subject, log_softmax(TINY_LOGITS)[subject.counts.entry_id])
    yield from explain_row(Row(TINY_LOGITS, TINY_LOGITS, attempts, subject.counts, objective, name))


# -- the command -----------------------------------------------------------------------------------


def main(argv: list[str]) -> None:
    place = Place()
    parser = argparse.ArgumentParser(
        prog="python -m minibule.explain",
        description="Work through one gradient with its numbers: counts, target, loss, gradient, "
        "LoRA, one step. Without arguments: the embedded model and the first of its records.",
    )
    which = {
        "record": "record of the data",
        "answer": "which of its rejected answers",
        "position": "which token of the answer the row predicts",
    }
    for name, meaning in which.items():
        default = getattr(place, name)
        parser.add_argument(
            f"--{name}",
            type=int,
            metavar="N",
            help=f"{meaning}, counting from 1 (default: {default})",
        )
    parser.add_argument(
        "--tiny-vocab",
        action="store_true",
        help="five tokens and round numbers instead of a model; the objective is the published "
        "one, literal, unless --objective names another",
    )
    parser.add_argument(
        "--adapter",
        dest="init_adapter",
        metavar="DIR",
        help="PEFT adapter folder to put on the model (default: a fresh one)",
    )
    knobs = ("objective", "prior", "counts", "contrast", "alpha")
    add_settings(parser, ["model", "data", *knobs, "lr", "max_length"])
    arguments = vars(parser.parse_args(argv))
    if arguments["tiny_vocab"]:
        free = ("tiny_vocab", *knobs)
        given = [n for n, value in arguments.items() if value is not None and n not in free]
        if given:
            flags = ", ".join("--" + n.replace("init_", "").replace("_", "-") for n in given)
            raise InputError(f"--tiny-vocab is a world of its own: leave out {flags}.")
        config = resolve(arguments | {"objective": arguments["objective"] or "literal"})
        objective = config.resolved_objective()
        print(_objective_line(config.objective, objective))
        lines = explain_tiny_vocab(objective)
    else:
        config = resolve(arguments)
        chosen = {n: arguments[n] for n in Place._fields if arguments[n] is not None}
        lines = explain(config, place._replace(**chosen))
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in lines:
        print(f"\033[1m{line}\033[0m" if bold and line[:1].isdigit() else line, flush=True)


if __name__ == "__main__":
    run(main)
