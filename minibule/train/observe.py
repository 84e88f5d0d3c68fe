"""What a model does at one moment: everything that is asked of it before and after training."""

import dataclasses

import numpy as np

from minibule.core.lora import Adapter
from minibule.errors import InputError
from minibule.evaluate.heldout import evaluate
from minibule.evaluate.position import telling_position
from minibule.evaluate.questions import ask, check_fit
from minibule.generate.decode import answer
from minibule.runs.snapshot import Snapshot
from minibule.train.setup import Setup

PROBE_TOKENS = 48  # of the answer to --probe


def check_questions(setup: Setup) -> None:
    """InputError where the probe or a held-out prompt does not fit: to be known before a run."""
    context = setup.model.config.max_position_embeddings
    if setup.config.probe:
        length = len(setup.chat.encode_prompt(setup.config.probe))
        if length + PROBE_TOKENS > context:
            raise InputError(
                f"--probe: found a prompt of {length:,} tokens; with an answer of {PROBE_TOKENS} "
                f"it exceeds the model's context of {context:,}. Shorten it, or leave it empty."
            )
    if setup.questions:
        check_fit(setup.chat, setup.questions, context)


@np.errstate(all="ignore")  # a model whose numbers overflow is measured as it is
def observe(setup: Setup, adapter: Adapter | None) -> Snapshot:
    """Ask the model with `adapter`, or without one, everything there is to ask."""
    model, chat, config = (
        dataclasses.replace(setup.model, adapter=adapter),
        setup.chat,
        setup.config,
    )
    examples, heldout, questions = setup.examples, setup.heldout, setup.questions
    sizes = {
        "parameters": model.config.parameters,
        "trained": sum(p.size for p in setup.adapter.params.values()),
        "records": len(examples),
        "answers": setup.rejected,
        "accepted": setup.accepted,
        "heldout": len(heldout),
    }
    probe = None
    if config.probe:
        (probe,) = answer(model, chat, [config.probe], PROBE_TOKENS)
    loss, pass_tokens = setup.loss, config.pass_tokens
    return Snapshot(
        sizes,
        probe,
        ask(model, chat, questions, pass_tokens) if questions else None,
        evaluate(model, heldout, loss, pass_tokens) if heldout else None,
        telling_position(model, chat, heldout or examples, loss, pass_tokens),
    )
