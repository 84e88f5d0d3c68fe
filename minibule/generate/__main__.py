"""`python -m minibule.generate`."""

import sys
from dataclasses import dataclass
from pathlib import Path

from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.generate.decode import Wanted, generate
from minibule.generate.sampling import SAMPLING, Sampling
from minibule.generate.stream import Printer
from minibule.machine.matmul import HELP as MATMUL_HELP
from minibule.machine.matmul import Mode, mode_of
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.models.named import MODEL_HELP
from minibule.program import run
from minibule.settings import Parser, add_flags, from_flags, setting

MODEL, ANSWER = "model", "prompt and answer"


@dataclass(frozen=True)
class GenerateConfig(Sampling):
    """The settings of `python -m minibule.generate`; they are a `Sampling` too."""

    model: Path | None = setting(None, MODEL_HELP, group=MODEL)
    adapter: Path | None = setting(None, "PEFT adapter folder to put on top", group=MODEL)
    matmul: Mode = setting("auto", MATMUL_HELP, group=MODEL)
    prompt: str = setting("", "what the user says", required=True, group=ANSWER)
    raw: bool = setting(
        False, "continue the text as it is, without the chat template", group=ANSWER
    )
    max_new_tokens: int = setting(
        128, "at most so many tokens of the answer", 1, group=ANSWER, spares="smaller"
    )
    n: int = setting(1, "answers to sample", 1, 10_000, group=ANSWER, spares="smaller")


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.generate",
        usage="%(prog)s --prompt TEXT [FLAGS]",
        description="Answer a prompt.",
        examples=(
            "--prompt hello",
            "--adapter runs/tiny/adapter --prompt hello --temperature 1 -n 3",
            '--model smollm2-135m --prompt "What is the capital of Portugal?"',
        ),
    )
    add_flags(parser, GenerateConfig, groups=(MODEL, ANSWER, SAMPLING))
    config = from_flags(GenerateConfig, vars(parser.parse_args(argv)))
    if config.n > 1 and config.temperature == 0:
        raise InputError(
            f"-n {config.n} at --temperature 0: the likeliest answer is the same every time. "
            "Expected one answer, or a temperature above 0, such as --temperature 1."
        )
    source = config.model or embedded_folder()
    model = load_model(source, config.adapter, matmul=config.matmul, rows=config.n)
    if mode_of(model.head) != "float32":
        print(f"products   {mode_of(model.head)}", file=sys.stderr)  # stdout is the answer's alone
    chat = load_chat(source)
    prompt = chat.encode_raw(config.prompt) if config.raw else chat.encode_prompt(config.prompt)
    if not len(prompt):
        raise InputError(f"--prompt {config.prompt!r}: no token, expected text to go on from.")
    stream = Printer(chat) if config.n == 1 else None
    wanted = Wanted(chat.stop, config.max_new_tokens, config, samples=config.n)
    answers = generate(model, [prompt], wanted, stream)
    if stream:
        stream.end()
    else:
        for number, ids in enumerate(answers[0], start=1):
            print(f"[{number}] {chat.decode(ids)}")


if __name__ == "__main__":
    run(main)
