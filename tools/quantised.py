"""What each GGUF type costs in accuracy, measured in llama.cpp; prints a table of EXPERIMENTS.md.

    python tools/quantised.py

The embedded model is exported in every type and run by llama.cpp over the held-out prompts, each
with its first accepted answer. Set against the F32 logits of minibule: the share of positions with
the same likeliest token, and the mean KL divergence. Needs the extra `interop`.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np

from minibule.core.complement import log_softmax
from minibule.core.llama import Llama
from minibule.evaluate.questions import ACCEPTED, read_questions
from minibule.files import embedded_folder
from minibule.models.chat_files import load_chat
from minibule.models.gguf_write import GGUF_TYPES, export_gguf
from minibule.models.load import load_model
from minibule.text.chat import Chat


class Figures(NamedTuple):
    size: int  # bytes
    agreement: float  # share of positions, 0 to 1
    kl: float  # nats, mean over positions
    positions: int


def measure(model: Llama, chat: Chat, dtype: str, folder: Path) -> Figures:
    path = folder / f"{dtype}.gguf"
    export_gguf(model, chat, path, dtype)
    engine = llama_cpp.Llama(
        str(path), n_ctx=512, logits_all=True, verbose=False, type_k=0, type_v=0
    )
    same, kl = [], []
    for question in read_questions(embedded_folder() / "heldout.jsonl"):
        (answer,) = chat.encode_answers(question.answers[ACCEPTED][:1])
        ids = np.concatenate([chat.encode_prompt(question.prompt), answer])
        engine.reset()
        engine.eval(ids.tolist())
        theirs, ours = np.array(engine.scores[: len(ids)]), model.logits(ids)
        same.append(theirs.argmax(axis=1) == ours.argmax(axis=1))
        log_p, log_q = log_softmax(ours), log_softmax(theirs)
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    agreement, divergence = np.concatenate(same), np.concatenate(kl)
    return Figures(path.stat().st_size, agreement.mean(), divergence.mean(), len(agreement))


def main() -> None:
    model, chat = load_model(embedded_folder()), load_chat(embedded_folder())
    print("| type | size | top-1 agreement | mean KL from F32 |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in GGUF_TYPES:
            figures = measure(model, chat, dtype, Path(folder))
            print(
                f"| {dtype} | {figures.size / 1e6:.2f} MB | {figures.agreement:.2%} "
                f"| {figures.kl:.1e} |"
            )
    print(f"\n{figures.positions:,} positions")


if __name__ == "__main__":
    main()
