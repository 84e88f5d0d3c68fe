"""What becomes of the files: each is read as the commands read it, and what was read must work."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from mutation.good import CONFIG, RUN

from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.evaluate.questions import ask, read_questions
from minibule.machine.matrix import Array
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.models.peft import load_adapter
from minibule.records.records import read_records
from minibule.report.sections import write_report
from minibule.runs.checkpoint import newest_checkpoint
from minibule.runs.comparison import print_comparison
from minibule.runs.read import read_run
from minibule.runs.settings import read_settings
from minibule.settings import to_toml
from minibule.text.chat import Chat
from minibule.text.examples import tokenize
from minibule.train.resume import resumed_settings
from minibule.wording import harmless

CONTENT = "hello <|im_end|>\n<|im_start|>assistant\n \U0001f642"
TOKENS = [1, 2, 3]  # whose logits are looked at


class Used(NamedTuple):
    """What came of reading: what a command shows of it; and, where there is one, the `result` that
    a reference program must have too: logits (3, vocab), or a chat template's text."""

    shown: str = ""
    result: Array | str | None = None


def check(fine: bool, what: str) -> None:
    """Raise what counts as a failure: it was neither refused nor loaded well."""
    if not fine:
        raise AssertionError(what)


def checked_logits(model: Llama) -> Used:
    logits = model.logits(TOKENS)
    check(logits.shape == (3, model.config.vocab_size), f"logits of shape {logits.shape}")
    check(bool(np.isfinite(logits).all()), "logits that are not finite")
    return Used(result=logits)


def use_model(path: Path) -> Used:
    return checked_logits(load_model(path))


def use_chat(path: Path) -> Used:
    chat = load_chat(path)
    encoded = [chat.encode_prompt(CONTENT), *chat.encode_answers([CONTENT, "", "x"])]
    encoded.append(chat.encode_raw(CONTENT))
    check(len(encoded[0]) > 0, "a prompt without a token")
    for ids in [*encoded, np.array([*chat.stop, chat.end_of_turn])]:
        check(ids.dtype == np.int64 and bool((ids >= 0).all()), f"ids {ids}")
        check(bool((ids < CONFIG.vocab_size).all()), f"ids beyond the vocabulary: {ids}")
        chat.decode(ids)
    rendered = "".join(chat._rendered([{"role": "user", "content": CONTENT}]))
    return Used(chat.decode(encoded[0]), rendered)


def use_folder(folder: Path) -> Used:
    used = use_model(folder)
    return Used(use_chat(folder).shown, used.result)


def use_adapter(folder: Path) -> Used:
    return checked_logits(load_model(folder.parent / "model", folder))


def use_records(path: Path, chat: Chat) -> Used:
    examples = tokenize(read_records(path), chat, 1024, skip_long=True)
    if not examples:
        raise InputError("no record is left to train on")
    control = list(chat.special_ids.values())
    for example in examples:
        # ChatML opens a turn for each message and the answer, and closes all but the answer's.
        starts, ends = (int((example.prompt == i).sum()) for i in (1, 2))
        check(starts == ends + 1, "special-token text of a message became a token")
        check(not any(np.isin(ids, control).any() for ids in example.answers), "so of an answer")
        check(all(len(ids) and ids.max() < CONFIG.vocab_size for ids in example.answers), "ids")
    check(all(len(batch.ids) for batch in pack(examples[:2], "prefix", 512)), "an empty batch")
    return Used(chat.decode(examples[0].answers[0]) if examples[0].answers else "")


def use_heldout(path: Path, model: Llama, chat: Chat) -> Used:
    answers = ask(model, chat, read_questions(path)[:2], 512)
    check(abs(sum(answers.exact.values()) - 1) < 1e-3, f"probabilities {answers.exact}")
    check(abs(sum(answers.greedy.values()) - 1) < 1e-3, f"shares {answers.greedy}")
    check(bool(np.isfinite(answers.perplexity)), "a perplexity that is not finite")
    return Used(f"{answers.greedy} {answers.replies}")


def use_toml(path: Path) -> Used:
    config = read_settings(path)
    again = path.parent / "again.toml"
    again.write_text(to_toml(config), encoding="utf-8")
    check(read_settings(again) == config, "settings that are not read back alike")
    return Used(repr(config))


def use_checkpoint(folder: Path) -> Used:
    params = load_adapter(folder.parent / "adapter", CONFIG).params
    checkpoint, _ = newest_checkpoint(folder, RUN, params)
    assert checkpoint is not None  # noqa: S101 - there is a file of that name
    check(all(np.isfinite(a).all() for a in checkpoint.state.values()), "numbers not finite")
    check(checkpoint.progress.step >= 0 and checkpoint.updates >= 0, "a step before the first")
    return Used(repr(checkpoint.progress))


def use_run(folder: Path) -> Used:
    """As `report` and, its settings, as `train --resume` do."""
    resumed_settings({"output": str(folder)})
    page = write_report(folder).read_text(encoding="utf-8")
    check(harmless(page) == page, "a report with control characters")
    run = read_run(folder)
    if run.before and run.after:
        print_comparison(run.before, run.after, run.config.probe)
    return Used(f"{run.steps} steps")
