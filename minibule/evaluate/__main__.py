"""`python -m minibule.evaluate`."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibule.errors import InputError
from minibule.evaluate.judge import read_rows
from minibule.evaluate.own_judge import JUDGE_HELP, MOST_SECONDS, SECONDS, named_judge
from minibule.evaluate.perplexity import text_perplexity
from minibule.evaluate.sampled import Asked, Figures, ask, by_kind, figures, record_row
from minibule.files import check_new, embedded_folder, new_output, reading, whole_file, writing
from minibule.machine.matmul import HELP as MATMUL_HELP
from minibule.machine.matmul import Mode, mode_of
from minibule.machine.threads import set_threads
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.models.named import MODEL_HELP
from minibule.program import run
from minibule.records.records import check_output, shown
from minibule.settings import Parser, add_flags, from_flags, setting
from minibule.wording import columns_of, printable

MODEL, QUESTIONS, SAMPLES = "model", "questions and judge", "samples"

EXAMPLES = 2  # questions shown with an answer or two


@dataclass(frozen=True)
class EvaluateConfig:
    """The settings of `python -m minibule.evaluate`."""

    model: Path | None = setting(None, MODEL_HELP, group=MODEL)
    adapter: Path | None = setting(None, "PEFT adapter folder to put on top", group=MODEL)
    data: Path = setting(
        Path(),
        "questions, a JSON object a line: prompt, what the judge needs, kind",
        required=True,
        group=QUESTIONS,
    )
    judge: str = setting("regex", JUDGE_HELP, group=QUESTIONS)
    judge_seconds: float = setting(
        SECONDS,
        "what a judge of your own may take for a batch",
        0,
        MOST_SECONDS,
        above=True,
        group=QUESTIONS,
    )
    text: Path | None = setting(None, "plain text whose perplexity is told too", group=QUESTIONS)
    samples: int = setting(
        8, "answers to sample for each question", 1, 256, group=SAMPLES, spares="smaller"
    )
    temperature: float = setting(
        1.0, "1 = sample from the model itself", 0, above=True, group=SAMPLES
    )
    max_new_tokens: int = setting(32, "at most so many tokens of an answer", 1, group=SAMPLES)
    seed: int = setting(0, "of the draws", 0, group=SAMPLES)
    threads: int = setting(0, "processor threads; 0 = all", 0)
    matmul: Mode = setting("auto", MATMUL_HELP)
    output: Path | None = setting(
        None, "write the judged samples, as records to train on (.jsonl)", group=SAMPLES
    )


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.evaluate",
        usage="%(prog)s --data QUESTIONS [FLAGS]",
        description="Put questions to a model, and let a program judge its answers.",
        examples=(
            "--data questions.jsonl",
            "--model smollm2-135m --data questions.jsonl --output samples.jsonl",
            "--model smollm2-135m --adapter runs/real/adapter --data questions.jsonl --judge exact",
        ),
    )
    add_flags(parser, EvaluateConfig, groups=(MODEL, QUESTIONS, SAMPLES))
    config = from_flags(EvaluateConfig, vars(parser.parse_args(argv)))
    if config.output:
        check_output(config.output)
        check_new(config.output)
    set_threads(config.threads)
    judge = named_judge(config.judge, config.judge_seconds)
    rows = read_rows(config.data, judge)
    text = _read_text(config.text) if config.text else ""
    source = config.model or embedded_folder()
    model, chat = load_model(source, config.adapter, matmul=config.matmul), load_chat(source)
    perplexity = text_perplexity(model, chat, text) if text else None  # first: it may be refused
    asked = ask(
        model,
        chat,
        rows,
        judge,
        samples=config.samples,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed,
    )
    if mode_of(model.head) != "float32":
        print(f"products   {mode_of(model.head)}\n")
    for line in _figures_shown(asked, config):
        print(line)
    if perplexity is not None:
        print(f"\nperplexity of the text          {perplexity:8.2f}")
    for line in _examples_shown(asked):
        print(line)
    if config.output:
        with new_output(config.output) as place:
            write_samples(asked, place)
        print(f"\nsamples    {shown(config.output)}")


def _read_text(path: Path) -> str:
    try:
        with reading(path) as file:
            text = file.read().decode()
    except ValueError as error:
        raise InputError(f"--text {path}: not UTF-8 text ({error}).") from None
    if not text.strip():
        raise InputError(f"--text {shown(path)}: found no text, expected some.")
    return text


def write_samples(asked: Sequence[Asked], path: Path) -> None:
    """The samples that were judged, one a line, in the unpaired format of `records`.

    Beside prompt, completion and label: the reward, whether the answer ended by itself, its tokens,
    and the kind of question where it has one.
    """
    with writing(path), whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for one in asked:
            for sample in one.samples:
                if sample.reward is not None:
                    row = record_row(one.row, sample)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


# -- what is printed -------------------------------------------------------------------------------


def _figures_shown(asked: Sequence[Asked], config: EvaluateConfig) -> Iterator[str]:
    all_of_them, kinds = figures(asked), by_kind(asked)
    of_kinds = f" of {len(kinds):,} kinds" if kinds else ""
    yield f"{len(asked):,} questions{of_kinds}, judged by {config.judge}"
    answers = [answer for one in asked for answer in (one.greedy, *one.samples)]
    if left_out := sum(not answer.judged for answer in answers):
        yield f"  left out, not judged          {left_out:8,} of {len(answers):,} answers"
    yield f"  greedy answer accepted        {all_of_them.greedy:8.4f}"
    yield f"{config.samples:,} samples of each at temperature {config.temperature:g}"
    yield f"  accepted                      {all_of_them.accepted:8.4f}{_plus_minus(all_of_them)}"
    for k, chance in all_of_them.pass_at.items():
        yield f"  pass@{k:<24} {chance:8.4f}"
    yield f"  ended by themselves           {all_of_them.ended:8.4f}"
    yield f"  tokens an answer              {all_of_them.tokens:8.2f}"
    yield f"  different answers a question  {all_of_them.unique:8.2f}"
    if kinds:
        names = {kind: printable(kind) for kind in kinds}
        width = max(map(columns_of, ("kind", *names.values())))
        yield ""
        best = f"pass@{config.samples}"
        yield f"{'kind':{width}}  questions  greedy  accepted{best:>10}  ended  tokens"
        for kind, f in kinds.items():
            gap = " " * (width - columns_of(names[kind]))
            yield (
                f"{names[kind]}{gap}{f.prompts:11,}{f.greedy:8.3f}{f.accepted:10.3f}"
                f"{f.pass_at[config.samples]:10.3f}{f.ended:7.3f}{f.tokens:8.2f}"
            )


def _plus_minus(f: Figures) -> str:
    """The standard error, where there is one."""
    return "" if math.isnan(f.accepted_error) else f" +- {f.accepted_error:.4f} over questions"


def _examples_shown(asked: Sequence[Asked]) -> Iterator[str]:
    """Questions with an accepted and a rejected sample; or, if there are none, the first."""
    told = [(one.row, [s for s in one.samples if s.judged]) for one in asked]
    mixed = [(row, some) for row, some in told if len({s.accepted for s in some}) > 1]
    for row, some in (mixed or [(row, some) for row, some in told if some])[:EXAMPLES]:
        yield f"\n{row['prompt']}"
        for accepted, word in ((True, "accepted"), (False, "rejected")):
            texts = [sample.text for sample in some if sample.accepted is accepted]
            if texts:
                yield f"  {word}  {texts[0].strip()!r}"


if __name__ == "__main__":
    run(main)
