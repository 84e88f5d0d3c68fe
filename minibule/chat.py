"""Talk with a model as it was before training and as it is after, and teach it while talking.

    python -m minibule.chat                          the embedded model
    python -m minibule.chat --adapter runs/tiny      the model of a run, and what the run made of it
    python -m minibule.chat --model smollm2-135m

Both share one set of weights: with its adapter the model is the trained one, without it the base.
What is rejected goes into a file of records, on which training begins where the last one ended:

    > hello
    hello
    > /reject
    > /train
    > /both
"""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.files import embedded_folder, found_at, open_own, writing
from minibule.generate.decode import OnToken, Wanted, check_prompts, generate
from minibule.generate.sampling import SAMPLING, Sampling
from minibule.generate.stream import Printer
from minibule.machine.threads import seconds_since
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.models.named import MODEL_HELP
from minibule.models.peft import load_adapter
from minibule.program import run
from minibule.records.records import read_records
from minibule.records.values import Message
from minibule.runs.folder import RunFolder
from minibule.runs.output import free_path
from minibule.runs.settings import FIELDS, read_settings, resolve
from minibule.settings import Parser, add_flags, from_flags, setting
from minibule.train.loop import train
from minibule.wording import columns_of, did_you_mean, harmless

MODEL, ANSWERS, TEACHING = "model", "answers", "teaching"

PROMPT = "> "
RECORDS = "rejected.jsonl"  # in the output folder, and what a run learnt from in the run's

# Each is a method of `Talk`.
COMMANDS = {
    "/before": "[TEXT]  what the base answers, to TEXT or to the last question again",
    "/after": "[TEXT]  what the trained model answers",
    "/both": "[TEXT]  both, side by side; the talk goes on from the trained model's",
    "/reject": "mark the last answer as rejected",
    "/train": "train on all that is rejected, and go on with the trained model",
    "/clear": "forget the conversation",
    "/help": "this list",
    "/quit": "leave; so does the end of the input",
}


@dataclass(frozen=True)
class ChatConfig(Sampling):
    """The settings of `python -m minibule.chat`; they are a `Sampling` too."""

    model: str = setting("", MODEL_HELP + ", or the one of the run in --adapter", group=MODEL)
    adapter: Path | None = setting(
        None, "what the model is after training: folder of a run, or PEFT adapter", group=MODEL
    )
    max_new_tokens: int = setting(
        128, "at most so many tokens of an answer", 1, group=ANSWERS, spares="smaller"
    )
    output: Path | None = setting(
        None,
        "folder for what is rejected and for the runs that learn it, new or of an earlier talk; "
        "empty = runs/chat, the first that is free",
        group=TEACHING,
    )
    steps: int = setting(30, "optimiser steps of each /train", 1, group=TEACHING)
    lr: float | None = setting(
        None, "peak learning rate of /train (default: that of minibule.train)", 0, group=TEACHING
    )


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.chat",
        usage="%(prog)s [FLAGS]",
        description="Talk with a model, before and after training; reject what it says, and train "
        "it on that. Without arguments: the embedded model.",
        examples=(
            "",
            "--adapter runs/tiny",
            "--model smollm2-135m --temperature 0.7 --output runs/taught",
        ),
    )
    add_flags(parser, ChatConfig, groups=(MODEL, ANSWERS, SAMPLING, TEACHING))
    talk = Talk(from_flags(ChatConfig, vars(parser.parse_args(argv))))
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if at_terminal:
        alone = "" if talk.model_name else " The embedded model knows single ones: /clear between."
        print(f"Type a question, or /help.{alone}")
        with contextlib.suppress(ImportError):  # arrow keys and earlier lines, where it is there
            import readline  # noqa: F401
    if isinstance(sys.stdin, io.TextIOWrapper):  # what is not UTF-8 is refused with words
        sys.stdin.reconfigure(errors="surrogateescape")
    with contextlib.suppress(EOFError):  # the end of the input, or /quit
        while sys.stdin is not None:
            try:
                talk.obey(_typed(at_terminal))
            except InputError as error:
                if not at_terminal:  # nobody is there to do better
                    raise
                print(f"error: {error}", file=sys.stderr)


def _typed(at_terminal: bool) -> str:
    """The next line of the input, asked for at a terminal; EOFError where it ends."""
    try:
        return input(PROMPT if at_terminal else "")
    except EOFError:
        if at_terminal:
            print()
        raise


class Talk:
    """A conversation, the model that answers, and what of it is rejected.

    model    with the adapter as it is by now, or none
    turns    questions and answers by turns; it ends with an answer
    place    the output folder, made when first something is rejected
    """

    def __init__(self, config: ChatConfig) -> None:
        self.config = config
        self.place = config.output
        if self.place and found_at(self.place) not in ("", "a folder"):
            raise InputError(f"--output {self.place}: found a file, expected a folder.")
        self.adapter, self.model_name = _named(config)
        source = self.model_name or embedded_folder()
        self.model, self.chat = load_model(source, self.adapter), load_chat(source)
        self.turns: list[Message] = []
        self.asked = 0
        self.ended = True
        self.rejected = False

    def obey(self, line: str) -> None:
        """Do what a line says: a question, or a command's name and what comes after it.

        Raises InputError for what cannot be done, EOFError for /quit.
        """
        name, _, text = line.partition(" ")
        if not line.startswith("/"):
            if line.strip():
                self.answer(line.strip(), self.model)
        elif name in COMMANDS:
            getattr(self, name.removeprefix("/"))(text.strip())
        else:
            raise InputError(
                f"{name}: no such command{did_you_mean(name, COMMANDS)}\n"
                "/help lists them. A question that begins with / takes a space before it."
            )

    # -- answers -------------------------------------------------------------------------------

    def answer(self, text: str, model: Llama) -> None:
        """Print what a model answers, as it comes, and go on from there."""
        question, printer = self._question(text), Printer(self.chat)
        self._keep(question, self._ask(question, model, printer))
        printer.end()

    def before(self, text: str) -> None:
        self.answer(text, self.model.base)

    def after(self, text: str) -> None:
        self._check_trained()
        self.answer(text, self.model)

    def both(self, text: str) -> None:
        """Print both answers side by side, and go on from the trained model's."""
        self._check_trained()
        question = self._question(text)
        before, after = (self._ask(question, model) for model in (self.model.base, self.model))
        self._keep(question, after)
        width = (shutil.get_terminal_size().columns - len(" | ")) // 2
        decode = self.chat.decode
        for left, right in (("before", "after"), (decode(before), decode(after))):
            for line in in_columns(left, right, width):
                print(line)

    def _check_trained(self) -> None:
        if self.model.adapter is None:
            raise InputError(
                "there is only the base so far. Reject an answer and /train, or start with "
                "--adapter."
            )

    def _question(self, text: str) -> list[Message]:
        """The conversation up to the question: a new one or, for an empty text, the last again."""
        if text:
            return [*self.turns, {"role": "user", "content": text}]
        if not self.turns:
            raise InputError("no question yet: type one.")
        return self.turns[:-1]

    def _ask(
        self,
        question: list[Message],
        model: Llama,
        on_token: OnToken | None = None,
    ) -> list[int]:
        wanted = Wanted(
            self.chat.stop,
            self.config.max_new_tokens,
            self.config,
            first=self.asked,  # other draws when the same is asked again
        )
        prompt = self.chat.encode_prompt(question)
        try:
            check_prompts(model, [prompt], wanted)
        except InputError as error:
            if len(question) == 1:
                raise
            raise InputError(f"{error} /clear begins a new conversation.") from None
        return generate(model, [prompt], wanted, on_token)[0][0]

    def _keep(self, question: list[Message], answer: list[int]) -> None:
        """The conversation is now the question and this answer."""
        self.turns = [*question, {"role": "assistant", "content": self.chat.decode(answer)}]
        self.ended = len(answer) < self.config.max_new_tokens
        self.rejected = False
        self.asked += 1

    # -- teaching ------------------------------------------------------------------------------

    def reject(self, _: str) -> None:
        """Write the last answer to the records of what is rejected."""
        if not self.turns or self.rejected or not self.turns[-1]["content"].strip():
            raise InputError("no answer to reject: ask, or ask again with /before or /after.")
        *question, answer = self.turns
        if self.place is None:
            self.place = free_path(Path("runs") / "chat")
        path = self.place / RECORDS
        row = {
            "prompt": question[0]["content"] if len(question) == 1 else question,
            "completion": answer["content"],
            "label": False,
            "ended": self.ended,
        }
        with writing(path):
            self.place.mkdir(parents=True, exist_ok=True)
            add_line(path, json.dumps(row, ensure_ascii=False))
        self.rejected = True
        print(f"Rejected: in {path}. /train learns from it.")

    def train(self, _: str) -> None:
        """Train on all that is rejected, from the adapter as it is, and go on with the new one."""
        if self.place is None or not (self.place / RECORDS).exists():
            raise InputError("nothing to learn from yet: /reject an answer first.")
        records = read_records(self.place / RECORDS)
        folder = RunFolder(free_path(self.place / "train"))
        data = folder.path / RECORDS  # a copy: the run goes on with --resume, whatever comes after
        with writing(data):
            folder.path.mkdir()
            shutil.copyfile(self.place / RECORDS, data)
        size = min(FIELDS["batch_size"].default, len(records))  # none of them twice in a step
        settings = {
            "model": self.model_name or None,
            "data": str(data),
            "output": str(folder.path),
            "init_adapter": str(self.adapter) if self.adapter else None,
            "steps": str(self.config.steps),
            "lr": str(self.config.lr) if self.config.lr is not None else None,
            "batch_size": str(size),
            "max_length": str(self.model.config.max_position_embeddings),
            "eval_fraction": "0",
            "export": "none",
            "probe": "",
        }
        said, started = io.StringIO(), time.perf_counter()
        try:
            with contextlib.redirect_stdout(said):
                train(resolve(settings))
        except BaseException:
            print(said.getvalue(), end="")  # among it, how the run goes on
            raise
        self.adapter = folder.adapter
        self.model.adapter = load_adapter(self.adapter, self.model.config)
        answers = sum(len(record.rejected) for record in records)
        print(
            f"Trained: {self.config.steps} steps on {answers:,} rejected "
            f"{'answer' if answers == 1 else 'answers'}, {seconds_since(started):.1f} s. "
            f"The adapter: {self.adapter}"
        )

    # -- the talk ------------------------------------------------------------------------------

    def clear(self, _: str) -> None:
        self.turns = []
        print("The conversation begins anew.")

    def help(self, _: str) -> None:
        print("What does not begin with / is a question. And:")
        for name, text in COMMANDS.items():
            print(f"  {name:<9}{text}")

    def quit(self, _: str) -> None:
        raise EOFError


def _named(config: ChatConfig) -> tuple[Path | None, str]:
    """The adapter and the model that the settings name; a run names both."""
    if config.adapter is None:
        return None, config.model
    folder = RunFolder(config.adapter)
    if not folder.settings.is_file():
        return config.adapter, config.model
    return folder.adapter, config.model or read_settings(folder.settings).model


def add_line(path: Path, text: str) -> None:
    """Add a line to a file, a new one where there is none: all of the line, or nothing."""
    with open_own(path) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        glued = file.read() not in (b"", b"\n")  # somebody's last line without its end
        line = b"\n" * glued + text.encode() + b"\n"
        unbuffered = io.FileIO(file.fileno(), "r+", closefd=False)
        try:
            while line:
                line = line[unbuffered.write(line) :]
        except OSError:
            unbuffered.truncate(end)
            raise


# -- two columns -----------------------------------------------------------------------------------


def in_columns(left: str, right: str, width: int) -> Iterator[str]:
    """The lines of two texts side by side, each cut to so many cells of a terminal."""
    both = [list(_lines(harmless(text), max(width, 2))) for text in (left, right)]
    for one, other in itertools.zip_longest(*both, fillvalue=""):
        yield f"{one}{' ' * (width - columns_of(one))} | {other}".rstrip()


def _lines(text: str, width: int) -> Iterator[str]:
    """A text in lines of at most so many cells, cut between words, or in one that is too long."""
    for paragraph in text.expandtabs().split("\n"):
        line = ""
        for word in re.findall(r"\s*\S+", paragraph):
            if line and columns_of(line + word) > width:
                yield line
                line, word = "", word.lstrip()
            for character in word:
                if columns_of(line + character) > width:
                    yield line
                    line = ""
                line += character
        yield line


if __name__ == "__main__":
    run(main)
