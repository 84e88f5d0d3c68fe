"""What a training step is given: batches of records, random or real, and an untrained adapter."""

import argparse
from collections.abc import Sequence

import numpy as np

from minibule.core.counts import Example
from minibule.core.lora import Adapter, init_adapter
from minibule.core.shapes import LlamaConfig
from minibule.models.chat_files import load_chat
from minibule.records.records import read_records
from minibule.runs.settings import TrainConfig
from minibule.text.examples import tokenize

BATCH = 4
LR = 1e-4


def random_example(rng: np.random.Generator, vocab: int, lengths: Sequence[int]) -> Example:
    """A prompt of lengths[0] tokens, and answers as long as the others."""
    prompt, *answers = (rng.integers(0, vocab, length) for length in lengths)
    return Example(prompt, tuple(answers), (1,) * len(answers), 1)


def dense_examples(vocab: int) -> list[Example]:
    """Prompts of 128 tokens with one rejected answer of 128 each."""
    rng = np.random.default_rng(0)
    return [random_example(rng, vocab, (128, 128)) for _ in range(BATCH)]


def real_examples(args: argparse.Namespace, context: int) -> list[Example]:
    """The file's first records, up to 3 rejected answers each, 512 tokens at most."""
    records = read_records(args.data)[: args.steps * BATCH]
    return tokenize(records, load_chat(args.model), min(512, context), max_rejected=3)


def batches(args: argparse.Namespace, model: LlamaConfig) -> list[list[Example]]:
    if args.case == "dense":
        return [dense_examples(model.vocab_size)] * args.steps
    examples = real_examples(args, model.max_position_embeddings)
    return [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]


def untrained(model: LlamaConfig, r: int = 16, layers: int = 0) -> Adapter:
    """An untrained adapter on all seven projections of the model's last layers (0: of all)."""
    config = TrainConfig(lora_r=r, lora_alpha=2.0 * r, lora_layers=layers)
    return init_adapter(config.resolved_lora(model.num_hidden_layers), model, seed=0)
