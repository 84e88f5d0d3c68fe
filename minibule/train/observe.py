"""What a model does at one moment: observed before and after training, saved, compared.

A run's folder keeps both as before.json and after.json, from which `report` draws its page.
"""

import dataclasses

import numpy as np

from minibule.core.lora import Adapter
from minibule.errors import InputError
from minibule.evaluate.heldout import evaluate
from minibule.evaluate.position import (
    telling_position,
)
from minibule.evaluate.questions import ask, check_fit
from minibule.generate.decode import answer
from minibule.runs.snapshot import (
    Snapshot,
)
from minibule.train.setup import Job

PROBE_TOKENS = 48  # of the answer to --probe


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
        telling_position(model, chat, heldout or examples, objective, pass_tokens),
    )


# -- one position ----------------------------------------------------------------------------------


# -- saved and read back ---------------------------------------------------------------------------


# -- compared --------------------------------------------------------------------------------------
