"""What other programs make of the same files, where the extras that bring them are installed.

Each returns what `use` calls a result, or None where the program is not there. An exception is a
refusal, and so is the end of the process: what stands first in a case has been reported by then.
"""

import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from mutation.use import CONTENT, TOKENS

from minibule.machine.matrix import Array

TOLERANCE = 1e-3  # of the logits' scale; wrong by a key that was ignored, they differ by far more


@cache
def transformers() -> Any:
    """The package, quiet and with one thread; None where it, peft or torch is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "peft")):
        return None
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import peft  # noqa: F401 - imported here, before all cases, once
    import torch
    import transformers as package

    torch.set_num_threads(1)
    package.logging.set_verbosity_error()
    package.logging.disable_progress_bar()
    return package


def _model(folder: Path) -> Any:
    import torch

    return transformers().LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _logits(model: Any) -> Array:
    import torch

    with torch.no_grad():
        logits: Array = model.eval()(torch.tensor([TOKENS])).logits[0].numpy()
    return logits


def folder_logits(folder: Path) -> Array | None:
    return _logits(_model(folder)) if transformers() else None


def adapter_logits(folder: Path) -> Array | None:
    if not transformers():
        return None
    from peft import PeftModel

    return _logits(PeftModel.from_pretrained(_model(folder.parent / "model"), folder))


def gguf_logits(path: Path) -> Array | None:
    """llama.cpp's; None, too, for types with which it rounds what it multiplies."""
    if not path.name.startswith("f32") or importlib.util.find_spec("llama_cpp") is None:
        return None
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    llama.eval(TOKENS)
    return np.array(llama.scores[: len(TOKENS)])


def template_text(folder: Path) -> str | None:
    if not transformers():
        return None
    tokenizer = transformers().AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": CONTENT}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def difference(found: Array | str, expected: Array | str) -> float:
    """How far a result is from another, in parts of the logits' scale; infinite for texts."""
    if isinstance(found, str) or isinstance(expected, str):
        return 0.0 if found == expected else float("inf")
    if found.shape != expected.shape:
        return float("inf")
    scale = np.abs(expected).max() + 1e-30
    return float(np.nan_to_num(np.abs(found - expected).max() / scale, nan=np.inf))
