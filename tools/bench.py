"""Measure a training step against torch + PEFT: same weights, adapter, records and loss, in turn.

    python tools/bench.py dense   --model DIR                     4 x (128 + 128) tokens, no sharing
    python tools/bench.py records --model DIR --data FILE         real records, 4 a step

DIR may hold random weights (tools/random_model.py). Every measurement is a process of its own; the
engines take turns, round after round, so that a drifting machine treats them alike, and ratios are
taken within a round. The share of sgemm is the step's arithmetic (matrix products only) at the rate
that NumPy's own products reach in the same process on the model's shapes.

torch's side is the strong one: logits at answer positions only, a sparse loss, no mask, no padding
beyond the longest answer of its record. Needs the extra `oracle`.
"""

import argparse
import json
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np

from minibule.chat import load_chat
from minibule.checkpoint import load_model
from minibule.config import OBJECTIVES, PROJECTIONS, LoraConfig, TrainConfig, module_names
from minibule.errors import InputError, run
from minibule.examples import tokenize
from minibule.forest import Example, pack
from minibule.llama import Llama
from minibule.lora import init_adapter
from minibule.machine import peak_memory_gb
from minibule.optim import AdamW
from minibule.records import read_records
from minibule.train import gradients

ENGINES = ("minibule", "torch-float32", "torch-bfloat16")
BATCH = 4
LR = 1e-4


def dense_examples(vocab: int) -> list[Example]:
    """Prompts of 128 tokens with one rejected answer of 128 each."""
    rng = np.random.default_rng(0)
    return [
        Example(rng.integers(0, vocab, 128), (rng.integers(0, vocab, 128),), (1,), 1)
        for _ in range(BATCH)
    ]


def real_examples(args: argparse.Namespace, context: int) -> list[Example]:
    """The file's first records, up to 3 rejected answers each, 512 tokens at most."""
    config = TrainConfig(max_rejected=3, max_length=512)
    records = read_records(args.data)[: args.steps * BATCH]
    return tokenize(records, load_chat(args.model), config, context)


def batches(args: argparse.Namespace, vocab: int, context: int) -> list[list[Example]]:
    if args.case == "dense":
        return [dense_examples(vocab)] * args.steps
    examples = real_examples(args, context)
    return [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]


# -- minibule --------------------------------------------------------------------------------------


def run_minibule(args: argparse.Namespace) -> dict[str, object]:
    model = load_model(args.model)
    lora = LoraConfig(
        16, 32.0, module_names(range(model.config.num_hidden_layers), PROJECTIONS), False
    )
    model.adapter = init_adapter(lora, model.config, seed=0)
    optimiser = AdamW(model.adapter.params, 0.0)
    objective = OBJECTIVES[args.objective]
    work = batches(args, model.config.vocab_size, model.config.max_position_embeddings)

    def step(examples: list[Example]) -> float:
        grads, metrics, _ = gradients(model, [examples], objective, TrainConfig().pass_tokens)
        optimiser.step(grads, LR)
        return metrics["loss"]

    result = timed(step, work)
    flops = [step_flops(model, examples, objective.needs_reference) for examples in work]
    rate = sgemm_rate(model)
    share = sum(flops) / rate / sum(result["seconds"])
    return result | {"sgemm_gflops": rate / 1e9, "share_of_sgemm": share}


def step_flops(model: Llama, examples: list[Example], needs_reference: bool) -> float:
    """Matrix products of a step over the packed tokens: forward, and backward to the input."""
    config = model.config
    linear = sum(np.prod(config.projection_shape(name)) for name in PROJECTIONS)
    linear *= config.num_hidden_layers
    head = model.head.size
    total = 0.0
    for batch in pack(examples, "position", TrainConfig().pass_tokens):
        forwards = 3 if needs_reference else 2
        total += 2.0 * forwards * (linear * len(batch.ids) + head * len(batch.stream))
    return total


def sgemm_rate(model: Llama) -> float:
    """Floating-point operations a second of NumPy's product on the model's largest layer."""
    W = model.weights["model.layers.0.mlp.up_proj.weight"]
    x = np.ones((1024, W.shape[1]), np.float32)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        x @ W.T
        seconds.append(time.perf_counter() - started)
    return 2.0 * len(x) * W.size / median(seconds)


# -- torch -----------------------------------------------------------------------------------------


def run_torch(args: argparse.Namespace) -> dict[str, object]:
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import LlamaForCausalLM

    dtype = getattr(torch, args.engine.removeprefix("torch-"))
    base = LlamaForCausalLM.from_pretrained(args.model, dtype=dtype)
    config = PeftConfig(r=16, lora_alpha=32, target_modules=list(PROJECTIONS))
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr=LR, weight_decay=0.0)
    inner, head = model.base_model.model.model, model.base_model.model.lm_head
    if args.objective != "literal":
        raise InputError("torch is measured on the literal objective only.")
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
        z = head(inner(ids).last_hidden_state[b, t]).float()  # (rows, V)
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

    def step(examples: list[Example]) -> float:
        count = sum(len(a) for e in examples for a in e.answers)
        optimiser.zero_grad()
        total = 0.0
        for micro in micro_batches(examples):
            loss = loss_of(micro, count)
            loss.backward()
            total += loss.item()
        optimiser.step()
        return total

    return timed(step, work)


# -- both ------------------------------------------------------------------------------------------


def timed(step, work: list[list[Example]]) -> dict[str, object]:
    """Seconds of each step after a first that is not counted, and the peak of memory."""
    step(work[0])
    seconds, losses = [], []
    for examples in work:
        started = time.perf_counter()
        losses.append(step(examples))
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "losses": losses, "peak_gb": peak_memory_gb()}


def measure(engine: str, argv: list[str]) -> dict[str, object]:
    done = subprocess.run(  # noqa: S603 - this very file
        [sys.executable, __file__, *argv, "--engine", engine],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{engine} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case", choices=["dense", "records"])
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, metavar="FILE")
    parser.add_argument("--objective", choices=OBJECTIVES, default="literal")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="counted steps a round")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.case == "records" and not args.data:
        parser.error("records needs --data")
    if args.engine:
        engine = run_minibule if args.engine == "minibule" else run_torch
        print(json.dumps(engine(args)))
        return

    engines = args.engines.split(",")
    results: dict[str, list[dict[str, object]]] = {name: [] for name in engines}
    for number in range(1, args.rounds + 1):
        for name in engines:
            results[name].append(measure(name, argv))
            seconds = results[name][-1]["seconds"]
            print(f"round {number}: {name:<15} {np.round(seconds, 2)} s", file=sys.stderr)
    print("| engine | s/step | records/s | peak GB | time, relative to minibule |")
    print("|---|---|---|---|---|")
    for name in engines:
        means = [float(np.mean(r["seconds"])) for r in results[name]]
        ratios = [
            m / float(np.mean(r["seconds"]))
            for m, r in zip(means, results[engines[0]], strict=True)
        ]
        peak = max(r["peak_gb"] for r in results[name])
        print(
            f"| {name} | {median(means):.2f} ({min(means):.2f}-{max(means):.2f}) "
            f"| {BATCH / median(means):.3f} | {peak:.2f} "
            f"| {median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |"
        )
    ours = results.get("minibule", [])
    if ours:
        shares, rates = ([r[k] for r in ours] for k in ("share_of_sgemm", "sgemm_gflops"))
        print(
            f"\nsgemm {median(rates):.0f} GFLOP/s ({min(rates):.0f}-{max(rates):.0f}); "
            f"minibule's step reaches {median(shares):.0%} ({min(shares):.0%}-{max(shares):.0%})"
        )


if __name__ == "__main__":
    run(main)
