"""The same training step by torch and PEFT: the strong side that tools/bench.py speaks of."""

import argparse
import os
from itertools import chain
from typing import Any

import numpy as np
import torch
from benches.timing import Gradients, timed
from benches.turns import Result
from benches.work import LR, batches, untrained
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

from minibule.core.counts import Example, row_count
from minibule.core.shapes import PROJECTIONS
from minibule.models.huggingface import load_config

Sequences = list[tuple[Example, int]]  # a prompt with one of its answers: which one


def run_torch(args: argparse.Namespace) -> Result:
    torch.set_num_threads(os.cpu_count() or 1)
    model, params = load(args)
    optimiser = torch.optim.AdamW(params.values(), lr=LR, weight_decay=0.0)
    inner, head = model.base_model.model.model, model.base_model.model.lm_head

    def loss_of(micro: Sequences) -> torch.Tensor:
        (b, t), entries = answer_tokens(micro)
        hidden = inner(padded(micro), use_cache=False).last_hidden_state
        return literal_loss(head(hidden[b, t]).float(), *entries)

    def step(examples: list[Example]) -> tuple[float, Gradients]:
        optimiser.zero_grad()
        total = 0.0
        for micro in micro_batches(examples, at_once=args.case == "dense"):
            loss = loss_of(micro) / row_count(examples)
            loss.backward()
            total += loss.item()
        optimiser.step()
        return total, {name: p.grad.float().numpy() for name, p in params.items()}

    return timed(step, batches(args, load_config(args.model)))


def load(args: argparse.Namespace) -> tuple[Any, dict[str, torch.Tensor]]:
    """The model with minibule's untrained adapter, and the adapter's numbers under PEFT's names."""
    dtype = getattr(torch, args.engine.removeprefix("torch-"))
    base = LlamaForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa")
    adapter = untrained(load_config(args.model))
    config = LoraConfig(
        r=adapter.config.r,
        lora_alpha=adapter.config.lora_alpha,
        target_modules=list(PROJECTIONS),
    )
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    params = {
        name.removeprefix("base_model.model.").replace(".default", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    for name, start in adapter.params.items():
        params[name].data.copy_(torch.from_numpy(start))
    return model, params


def micro_batches(examples: list[Example], at_once: bool) -> list[Sequences]:
    """All sequences in one batch, or a record at a time."""
    records = [[(e, k) for k in range(len(e.answers))] for e in examples]
    return [list(chain(*records))] if at_once else records


def padded(micro: Sequences) -> torch.Tensor:
    """Token ids (B, T) without each answer's last, zeros behind."""
    lengths = [len(e.prompt) + len(e.answers[k]) - 1 for e, k in micro]
    ids = torch.zeros(len(micro), max(lengths), dtype=torch.long)
    for b, (e, k) in enumerate(micro):
        ids[b, : lengths[b]] = torch.from_numpy(np.concatenate([e.prompt, e.answers[k][:-1]]))
    return ids


def answer_tokens(micro: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the N answer tokens are predicted, b and t (2, N), and what was rejected there.

    That is row, token, v, T (4, M): at that of the N rows the token was rejected v times, and all
    tokens together T times.
    """
    where, entries = [], []
    for b, (e, k) in enumerate(micro):
        for t in range(len(e.answers[k])):
            v: dict[int, int] = {}
            for other, c in zip(e.answers, e.counts, strict=True):
                if len(other) > t:
                    v[int(other[t])] = v.get(int(other[t]), 0) + c
            entries += [(len(where), i, c, sum(v.values())) for i, c in v.items()]
            where.append((b, len(e.prompt) - 1 + t))
    return torch.tensor(where).T, torch.tensor(entries).T


def literal_loss(
    z: torch.Tensor, row: torch.Tensor, token: torch.Tensor, v: torch.Tensor, T: torch.Tensor
) -> torch.Tensor:
    """The sum of the rows' losses, of logits z (N, vocab) and the entries of `answer_tokens`."""
    vocab = z.shape[1]
    T, v = T.float(), v.float()
    total = torch.zeros(len(z)).index_copy(0, row, T)
    lse = z.logsumexp(-1)
    ze = z[row, token]
    Z = vocab * (total + 1) - total

    def per_row(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(z)).index_add(0, row, x)

    # KL = sum P log P - sum P log p, with P = (T - v + 1) / Z and T + 1 for most tokens.
    full, kept = (total + 1) * (total + 1).log(), T - v + 1
    lacking = per_row(full[row] - kept * kept.log())
    cross = ((total + 1) * z.sum(-1) - per_row(v * ze)) / Z
    kl = (vocab * full - lacking) / Z - Z.log() - cross + lse
    contrast = -(v / T * torch.log1p(-(ze - lse[row]).exp()))
    return 0.7 * kl.sum() + 0.3 * contrast.sum()
