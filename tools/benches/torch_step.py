"""The same training step by torch and PEFT, as fast as they take it."""

import argparse
import os
from itertools import chain

import numpy as np
from benches.timing import Gradients, timed
from benches.turns import Result
from benches.work import LR, batches

from minibule.core.counts import Example
from minibule.core.lora import init_adapter
from minibule.core.shapes import PROJECTIONS
from minibule.models.huggingface import load_config
from minibule.runs.settings import TrainConfig


def run_torch(args: argparse.Namespace) -> Result:
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import LlamaForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, args.engine.removeprefix("torch-"))
    base = LlamaForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa")
    config = PeftConfig(r=16, lora_alpha=32, target_modules=list(PROJECTIONS))
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    params = {
        name.removeprefix("base_model.model.").replace(".default", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    lora = TrainConfig().resolved_lora(base.config.num_hidden_layers)
    for name, start in init_adapter(lora, load_config(args.model), seed=0).params.items():
        params[name].data.copy_(torch.from_numpy(start))
    optimiser = torch.optim.AdamW(params.values(), lr=LR, weight_decay=0.0)
    inner, head = model.base_model.model.model, model.base_model.model.lm_head
    work = batches(args, base.config.vocab_size, base.config.max_position_embeddings)

    def micro_batches(examples: list[Example]) -> list[list[tuple[Example, int]]]:
        rows = [[(e, k) for k in range(len(e.answers))] for e in examples]
        return [list(chain(*rows))] if args.case == "dense" else rows  # a record at a time

    def loss_of(micro: list[tuple[Example, int]], count: int) -> "torch.Tensor":
        lengths = [len(e.prompt) + len(e.answers[k]) - 1 for e, k in micro]
        ids = torch.zeros(len(micro), max(lengths), dtype=torch.long)
        where, entries = [], []
        for b, (e, k) in enumerate(micro):
            answer = e.answers[k]
            ids[b, : lengths[b]] = torch.from_numpy(np.concatenate([e.prompt, answer[:-1]]))
            for t in range(len(answer)):
                v: dict[int, int] = {}
                for other, c in zip(e.answers, e.counts, strict=True):
                    if len(other) > t:
                        v[int(other[t])] = v.get(int(other[t]), 0) + c
                entries += [(len(where), i, c, sum(v.values())) for i, c in v.items()]
                where.append((b, len(e.prompt) - 1 + t))
        b, t = torch.tensor(where).T
        row, token, v, T = torch.tensor(entries).T
        z = head(inner(ids, use_cache=False).last_hidden_state[b, t]).float()  # (rows, V)
        vocab = z.shape[1]
        T, v = T.float(), v.float()
        total = torch.zeros(len(z)).index_copy(0, row, T)
        lse = z.logsumexp(-1)
        ze = z[row, token]
        Z = vocab * (total + 1) - total

        def per_row(x: "torch.Tensor") -> "torch.Tensor":
            return torch.zeros(len(z)).index_add(0, row, x)

        # KL = sum P log P - sum P log p, with P = (T - v + 1) / Z and T + 1 for most tokens.
        full, kept = (total + 1) * (total + 1).log(), T - v + 1
        lacking = per_row(full[row] - kept * kept.log())
        cross = ((total + 1) * z.sum(-1) - per_row(v * ze)) / Z
        kl = (vocab * full - lacking) / Z - Z.log() - cross + lse
        contrast = -(v / T * torch.log1p(-(ze - lse[row]).exp()))
        return (0.7 * kl.sum() + 0.3 * contrast.sum()) / count

    def step(examples: list[Example]) -> tuple[float, Gradients]:
        count = sum(len(a) for e in examples for a in e.answers)
        optimiser.zero_grad()
        total = 0.0
        for micro in micro_batches(examples):
            loss = loss_of(micro, count)
            loss.backward()
            total += loss.item()
        optimiser.step()
        return total, {name: p.grad.float().numpy() for name, p in params.items()}

    return timed(step, work)
