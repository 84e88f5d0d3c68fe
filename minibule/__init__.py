"""Teach a language model from what it should not say, in NumPy alone.

    import minibule

    model = minibule.load_model(path)                    # a Hugging Face folder or a GGUF file
    model.logits(ids)                                    # (T,) -> (T, vocab) float32
    records = minibule.read_records(path)                # prompts and their rejected answers
    minibule.complement_distribution(counts)             # (..., V) -> (..., V) float64
    minibule.complement_loss(logits, counts, alpha=0.7)  # (n, V) twice -> (loss, dlogits)

Commands, each with `--help`:

    python -m minibule.train      teach a model from rejection records
    python -m minibule.rounds     sample answers, judge them, train on them, again
    python -m minibule.generate   answer a prompt
    python -m minibule.chat       talk before and after training, and teach while talking
    python -m minibule.evaluate   ask questions, judge the answers, write them to train on
    python -m minibule.export     write the model or its adapter for others to load
    python -m minibule.records    check, count and convert files of rejected answers
    python -m minibule.report     a run as one page: what it learnt, in pictures and tables
    python -m minibule.explain    one gradient worked through with its numbers: begin here
    python -m minibule.check      mark the exercises that you filled in: core/EXERCISES.md
    python -m minibule.env        versions, processor, BLAS, threads, extras: for a bug report

The code is meant to be read, and core/ is the lesson: NumPy alone, each gradient under its forward.

    records -> examples -> forest -> llama.forward -> loss -> llama.backward -> optim -> files

Begin with core/LESSON.md, or with `python -m minibule.explain --tiny-vocab`. The other folders:

    machine     threads, memory, products in 16 bits, one run on several machines (`ranks`)
    records     rejection records in: what was rejected, and how often
    text        messages to text to token ids
    methods     the losses by name: other ways to learn from judged answers
    models      models and adapters on disk: Hugging Face, PEFT, GGUF
    generate    answers: prefill, sampling, one token at a time
    evaluate    what a model does with questions, and with prompts it was not trained on
    runs        the folder of a run: what is in it, and whose it is
    train       one run, from its settings to its report
    report      a run as one page
    explain     one gradient, worked through with its numbers
    check       what a learner's functions give, against answers from outside
    rounds      runs one after another, each on samples of the model as it is
"""

import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from minibule.core.complement import complement_distribution, complement_loss
    from minibule.errors import InputError
    from minibule.models.load import load_model
    from minibule.records.records import Record, read_records

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m minibule...`, and its command still imports: Ctrl-C leaves without a traceback.
    # Once all is there, `program.run` says what signals do.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

# name -> the module it is found in, imported when first asked for: `import minibule` is instant.
_HOME = {
    "InputError": "errors",
    "Record": "records.records",
    "complement_distribution": "core.complement",
    "complement_loss": "core.complement",
    "load_model": "models.load",
    "read_records": "records.records",
}
__all__ = [
    "InputError",
    "Record",
    "complement_distribution",
    "complement_loss",
    "load_model",
    "read_records",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minibule' has no attribute {name!r}")
    return getattr(import_module(f"minibule.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
