"""`python -m minibule.generate`."""

import argparse

import numpy as np

from minibule.files import embedded_folder
from minibule.generate.decode import generate
from minibule.generate.sampling import Sampling
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.program import run
from minibule.text.chat import Chat


def main(argv: list[str]) -> None:
    defaults = Sampling._field_defaults
    parser = argparse.ArgumentParser(
        prog="python -m minibule.generate", description="Answer a prompt."
    )
    parser.add_argument("--model", metavar="DIR", help="Hugging Face folder (default: embedded)")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder to put on top")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the user says")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without the chat template"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="at most so many tokens of the answer (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=defaults["temperature"],
        metavar="X",
        help="0 = always the likeliest token (default), 1 = sample from the model itself",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=defaults["top_k"],
        metavar="K",
        help="sample among the K likeliest tokens only; 0 = all (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=defaults["top_p"],
        metavar="P",
        help="sample among the likeliest tokens that together have this probability (default: "
        "%(default)s, all)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=defaults["seed"],
        metavar="S",
        help="of the draws (default: %(default)s)",
    )
    parser.add_argument(
        "-n", type=int, default=1, metavar="N", help="answers to sample (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    low = {"max_new_tokens": 1, "top_k": 0, "seed": 0, "n": 1}
    for name, least in low.items():
        if getattr(args, name) < least:
            parser.error(f"{name}: found {getattr(args, name)}, expected at least {least}")
    if not 0 <= args.temperature < np.inf:
        parser.error(f"--temperature: found {args.temperature}, expected a number of at least 0")
    if not 0 < args.top_p <= 1:
        parser.error(f"--top-p: found {args.top_p}, expected above 0 and at most 1")

    folder = args.model or embedded_folder()
    model, chat = load_model(folder, args.adapter), load_chat(folder)
    prompt = chat.encode_raw(args.prompt) if args.raw else chat.encode_prompt(args.prompt)
    stream = _Printer(chat) if args.n == 1 else None
    answers = generate(
        model,
        [prompt],
        stop=chat.stop,
        max_new_tokens=args.max_new_tokens,
        sampling=Sampling(args.temperature, args.top_k, args.top_p, args.seed),
        samples=args.n,
        on_token=stream,
    )
    if stream:
        print()
    else:
        for number, ids in enumerate(answers[0], start=1):
            print(f"[{number}] {chat.decode(ids)}")


class _Printer:
    """Prints an answer as it comes, holding back bytes that are not yet a whole character."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ids: list[int] = []
        self.printed = 0

    def __call__(self, _sequence: int, token: int) -> None:
        self.ids.append(token)
        text = self.chat.decode(self.ids)
        if not text.endswith("\ufffd"):
            print(text[self.printed :], end="", flush=True)
            self.printed = len(text)


if __name__ == "__main__":
    run(main)
