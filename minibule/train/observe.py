"""What a model does at one moment: observed before and after training, saved, compared.

A run's folder keeps both as before.json and after.json, from which `report` draws its page.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import numpy as np
from tqdm import tqdm

from minibule.config import Objective
from minibule.core.complement import contrast_weights, log_softmax, optimum, target_distribution
from minibule.core.forest import Batch, Example, pack, total_weight
from minibule.core.head import add_metrics, head_metrics
from minibule.core.llama import Llama, forward_batch
from minibule.core.lora import Adapter
from minibule.errors import InputError
from minibule.evaluate.questions import ACCEPTED, NOISE, Answers, ask, check_fit
from minibule.files import read_json, whole_file, write_json, writing
from minibule.generate.decode import answer
from minibule.machine.threads import side_by_side, threads
from minibule.text.chat import Chat
from minibule.train.setup import Job

PROBE_TOKENS = 48  # of the answer to --probe
LOOKED_AT = 8  # records among which a telling position is looked for
TOP_TOKENS = 24  # likeliest tokens kept of each distribution there
CONTEXT_LETTERS = 400  # kept of the text before it


class Token(NamedTuple):
    """A token of a `Position`.

    rejected              v, how often it was rejected there
    base, model, target   its probability under the base, under the model, and in P
    optimum               in p*, the distribution that minimises the position's objective; None
                          where alpha = 0 and there is none
    """

    id: int
    text: str
    rejected: float
    base: float
    model: float
    target: float
    optimum: float | None


class Position(NamedTuple):
    """The first position of a record's answers: what stands before it, T, the likeliest tokens."""

    context: str
    total: float
    tokens: list[Token]


class Snapshot(NamedTuple):
    """What a model does at one moment.

    sizes       how many `parameters`, `trained` ones, training `records` and `answers`, and
                `heldout` records there are
    probe       the answer to the probe
    questions   the answers to held-out prompts
    heldout     `evaluate` on held-out records
    position    what the model expects at one position of one of them, and what it should
    """

    sizes: dict[str, int]
    probe: str | None
    questions: Answers | None
    heldout: dict[str, float] | None
    position: Position


def check_questions(job: Job) -> None:
    """InputError where the probe or a held-out prompt does not fit: to be known before a run."""
    context = job.model.config.max_position_embeddings
    if job.config.probe:
        length = len(job.chat.encode_prompt(job.config.probe))
        if length + PROBE_TOKENS > context:
            raise InputError(
                f"--probe: found a prompt of {length:,} tokens; with an answer of {PROBE_TOKENS} "
                f"it exceeds the model's context of {context:,}. Shorten it, or leave it empty."
            )
    if job.questions:
        check_fit(job.chat, job.questions, context)


@np.errstate(all="ignore")  # a model whose numbers overflow is measured as it is
def observe(job: Job, adapter: Adapter | None) -> Snapshot:
    """Ask the job's model with `adapter`, or without one, everything there is to ask."""
    model, chat, config = dataclasses.replace(job.model, adapter=adapter), job.chat, job.config
    examples, heldout, questions = job.examples, job.heldout, job.questions
    sizes = {
        "parameters": model.config.parameters,
        "trained": sum(p.size for p in job.adapter.params.values()),
        "records": len(examples),
        "answers": sum(len(example.answers) for example in examples),
        "heldout": len(heldout),
    }
    probe = None
    if config.probe:
        (probe,) = answer(model, chat, [config.probe], PROBE_TOKENS)
    objective, pass_tokens = config.resolved_objective(), config.pass_tokens
    return Snapshot(
        sizes,
        probe,
        ask(model, chat, questions, pass_tokens) if questions else None,
        evaluate(model, heldout, objective, pass_tokens) if heldout else None,
        _position(model, chat, heldout or examples, objective, pass_tokens),
    )


@np.errstate(all="ignore")
def evaluate(
    model: Llama, examples: Sequence[Example], objective: Objective, pass_tokens: int
) -> dict[str, float]:
    """Means over the rows of held-out examples; what they are, `loss.row_metrics` says."""
    count = total_weight(examples)

    def one_pass(batch: Batch) -> tuple[dict[str, float], int]:
        ref_hidden, _ = forward_batch(model, batch, None)
        hidden = ref_hidden
        if model.adapter:
            hidden, _ = forward_batch(model, batch, model.adapter)
        metrics = head_metrics(hidden, model.head, batch.rows, objective, ref_hidden, count=count)
        return metrics, len(batch.answer_entry)

    metrics: dict[str, float] = {}
    answers = sum(len(example.answers) for example in examples)
    passes = side_by_side(one_pass, pack(examples, objective.counts, pass_tokens, threads()))
    with tqdm(total=answers, desc="evaluating", unit=" answers", delay=1, leave=False) as bar:
        for more, size in passes:
            add_metrics(metrics, more)
            bar.update(size)
    metrics["first_rejected_mass"] /= metrics.pop("first")
    return metrics


# -- one position ----------------------------------------------------------------------------------


def _position(
    model: Llama,
    chat: Chat,
    examples: Sequence[Example],
    objective: Objective,
    pass_tokens: int,
) -> Position:
    """The first position of one of the first records, with the dense functions of `complement`.

    Which one follows from the base model alone, so it is the same before and after: the one where
    v/T p_ref (1 - p_ref), summed, is largest. There rejected tokens are likely, and others too.
    """
    # Of the answers only the first tokens: each record has one row, at the end of its prompt.
    first = [e._replace(answers=tuple(a[:1] for a in e.answers)) for e in examples[:LOOKED_AT]]
    z_ref = np.empty((len(first), model.config.vocab_size))
    for batch in pack(first, objective.counts, pass_tokens):
        examples_there = np.unique(batch.answer[:, 0])
        z_ref[examples_there] = forward_batch(model, batch, None)[0] @ model.head.T
    counts = np.zeros(z_ref.shape)
    for row, example in enumerate(first):
        np.add.at(counts[row], [int(a[0]) for a in example.answers], example.counts)
    totals = counts.sum(axis=1, keepdims=True)
    p_ref = np.exp(log_softmax(z_ref))
    best = int((counts / totals * p_ref * (1 - p_ref)).sum(axis=1).argmax())

    example, v, ref = first[best], counts[[best]], z_ref[[best]]
    total = float(totals[best, 0])
    attempts = np.array([max(total, example.total_rounds)])  # p_ref of an empty prefix is 1
    P = target_distribution(v, objective.prior, ref, attempts)
    w = contrast_weights(v, objective.contrast, ref)
    p_star = optimum(P, w, objective.alpha)[0] if objective.alpha > 0 else None
    (batch,) = pack([example], objective.counts, pass_tokens=len(example.prompt))
    hidden, _ = forward_batch(model, batch, model.adapter)
    p = np.exp(log_softmax(hidden @ model.head.T))[0]

    likely = [np.argsort(-x, kind="stable")[:TOP_TOKENS] for x in (p_ref[best], p, P[0])]
    kept = np.unique(np.concatenate([*likely, *[a[:1] for a in example.answers]]))
    tokens = [
        Token(
            int(i),
            _token_text(chat, int(i)),
            float(v[0, i]),
            float(p_ref[best, i]),
            float(p[i]),
            float(P[0, i]),
            None if p_star is None else float(p_star[i]),
        )
        for i in kept
    ]
    text = str(chat.tokenizer.decode(example.prompt.tolist(), skip_special_tokens=False))
    return Position(text[-CONTEXT_LETTERS:], total, tokens)


def _token_text(chat: Chat, token: int) -> str:
    """A token's text; where it is only a part of a character, its name in the vocabulary."""
    text = str(chat.tokenizer.decode([token], skip_special_tokens=False))
    if text and "\ufffd" not in text:
        return text
    return str(chat.tokenizer.id_to_token(token) or f"token {token}")


# -- saved and read back ---------------------------------------------------------------------------


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot as a JSON object."""
    with writing(path), whole_file(path) as file:
        write_json(file, _as_dict(snapshot))


def load_snapshot(path: Path) -> Snapshot:
    """Read what `save_snapshot` wrote; InputError where the file is anything else."""
    value = read_json(path)
    try:
        return cast(Snapshot, _typed(Snapshot, value, "the file"))
    except ValueError as error:
        raise InputError(
            f"{path}: not a snapshot of a model by this version of minibule: {error}."
        ) from None


def _as_dict(value: Any) -> Any:
    """Named tuples as objects, all the way down."""
    if hasattr(value, "_asdict"):
        return {name: _as_dict(part) for name, part in value._asdict().items()}
    return [_as_dict(part) for part in value] if isinstance(value, list) else value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The way back: `value` as the type that `hint` names; ValueError where it is not of it."""
    if get_origin(hint) is UnionType:  # ... | None
        return None if value is None else _typed(get_args(hint)[0], value, where)
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        hints = get_type_hints(hint)
        if isinstance(value, dict) and set(value) == set(hints):
            return hint(*(_typed(hints[name], value[name], name) for name in hints))
        hint = f"an object of {', '.join(hints)}"
    elif get_origin(hint) is list and isinstance(value, list):
        return [_typed(get_args(hint)[0], part, where) for part in value]
    elif get_origin(hint) is dict and isinstance(value, dict):
        return {name: _typed(get_args(hint)[1], part, name) for name, part in value.items()}
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is hint:
        return value
    raise ValueError(f"{where}: found a {type(value).__name__}, expected {hint}")


# -- compared --------------------------------------------------------------------------------------

Comparison = tuple[str, float, float]


def comparisons(before: Snapshot, after: Snapshot) -> dict[str, list[Comparison]]:
    """What both know, as (what, before, after), under what it was measured on."""
    tables: dict[str, list[Comparison]] = {}
    if before.questions and after.questions:
        was, now = before.questions, after.questions
        rows = [
            ("greedy answer accepted", _of(was.greedy, ACCEPTED), _of(now.greedy, ACCEPTED)),
            ("P(accepted answer), exact", _of(was.exact, ACCEPTED), _of(now.exact, ACCEPTED)),
        ]
        rows += [
            (f"P({style})", share, _of(now.exact, style))
            for style, share in was.exact.items()
            if style != ACCEPTED
        ]
        rows += [
            ("greedy noise", _of(was.greedy, NOISE), _of(now.greedy, NOISE)),
            ("perplexity of accepted answers", was.perplexity, now.perplexity),
        ]
        tables[f"on {len(was.texts):,} held-out prompts"] = rows
    if before.heldout and after.heldout:
        tables[f"on {before.sizes.get('heldout', 0):,} held-out records"] = [
            (name.replace("_", " "), _of(before.heldout, name), value)
            for name, value in after.heldout.items()
        ]
    return tables


def _of(values: Mapping[str, float], name: str) -> float:
    return values.get(name, float("nan"))


def print_comparison(before: Snapshot, after: Snapshot, probe: str) -> None:
    """The table of `comparisons` and the answers to the probe, for the terminal."""
    print()
    print(f"{'':<34}{'before':>12}{'after':>12}")
    for title, rows in comparisons(before, after).items():
        print(title)
        for what, was, now in rows:
            print(f"  {what:<32}{was:>12.4f}{now:>12.4f}")
    if before.probe is not None:
        print(f"\n{probe!r}\n  before: {before.probe}\n  after:  {after.probe}")
