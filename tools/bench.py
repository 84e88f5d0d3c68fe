"""Measure minibule: a training step, generation, export, the start, and how a step's cost grows.

    python tools/bench.py dense    --model DIR                    4 x (128 + 128) tokens, no sharing
    python tools/bench.py records  --model DIR --data FILE        real records, 4 a step
    python tools/bench.py generate --model DIR                    against llama.cpp in float32
    python tools/bench.py export   --model DIR                    seconds and memory of each format
    python tools/bench.py start    --model DIR --data FILE        from the command to the first step
    python tools/bench.py growth   --model DIR [--plot FILE.svg]  tokens, answers, layers, ranks

DIR may hold random weights (tools/random_model.py). Every measurement is a process of its own; the
engines take turns, round after round, so that a drifting machine treats them alike, and ratios are
taken within a round; a cell is the median of the rounds and, in brackets, their range.

dense and records compare with torch + PEFT: same weights, adapter, records and loss. torch's side
is the strong one: logits at answer positions only, a sparse loss, fused causal attention without a
mask, no padding beyond the longest answer of its record, nothing recomputed. The loss is that of
the objective `literal`, but for the engines minibule-reference and minibule-rate; minibule-low is
training with --memory low; minibule-bfloat16, -bfloat16x2 and -bfloat16x3 multiply as --matmul of
that name does (extra `fast`), and minibule-2x1 is two ranks of one thread each (extra `mpi`; 1x1,
1x2 and 4x1 beside it), whose "GB of all" counts once what they share. How far an engine's losses
and its first gradient are from those of the first engine, minibule's in float32 unless another is
named, is told under the times. The share of sgemm is the step's arithmetic (matrix products only)
at the rate that NumPy's own products reach in the same process on the model's shapes. Needs the
extra `oracle`; generate needs `interop` (llama-cpp-python).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.core.lora import Adapter, init_adapter
from minibule.core.objective import OBJECTIVES
from minibule.core.optim import AdamW
from minibule.core.shapes import PROJECTIONS
from minibule.core.step import gradients
from minibule.errors import InputError
from minibule.export import export
from minibule.generate.decode import generate
from minibule.generate.sampling import Sampling
from minibule.machine.half import widened
from minibule.machine.matmul import TERMS, Mode
from minibule.machine.mpi import together
from minibule.machine.ranks import world
from minibule.machine.threads import memory_gb, peak_memory_gb
from minibule.methods.table import LOSSES
from minibule.models.chat_files import load_chat
from minibule.models.huggingface import load_config
from minibule.models.load import load_model
from minibule.program import run
from minibule.records.records import read_records
from minibule.runs.settings import TrainConfig
from minibule.text.examples import tokenize

BATCH = 4
LR = 1e-4
Result = dict[str, Any]


# -- the records of a step -------------------------------------------------------------------------


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


def batches(args: argparse.Namespace, vocab: int, context: int) -> list[list[Example]]:
    if args.case == "dense":
        return [dense_examples(vocab)] * args.steps
    examples = real_examples(args, context)
    return [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]


# -- a step: minibule ------------------------------------------------------------------------------


def untrained(model: Llama, r: int = 16, layers: int = 0) -> Adapter:
    """An untrained adapter on all seven projections of the model's last layers (0: of all)."""
    config = TrainConfig(lora_r=r, lora_alpha=2.0 * r, lora_layers=layers)
    lora = config.resolved_lora(model.config.num_hidden_layers)
    return init_adapter(lora, model.config, seed=0)


Gradients = Mapping[str, np.ndarray]
Step = Callable[[list[Example]], tuple[float, Gradients]]


def stepper(model: Llama, adapter: Adapter, objective: str, recompute: bool = False) -> Step:
    """One step of training on a batch; returns its loss and gradients."""
    model.adapter = adapter
    optimiser = AdamW(adapter.params, 0.0)
    config = TrainConfig()

    def step(examples: list[Example]) -> tuple[float, Gradients]:
        grads, metrics, _ = gradients(
            model, examples, LOSSES[objective], config.pass_tokens, recompute
        )
        optimiser.step(grads, LR)
        return metrics["loss"], grads

    return step


def run_minibule(args: argparse.Namespace) -> Result:
    kind = args.engine.removeprefix("minibule").removeprefix("-")
    objective, low = kind if kind in OBJECTIVES else "literal", kind == "low"
    load = partial(load_model, args.model, narrow=True, matmul=matmul_of(args.engine))
    model = world().one_a_machine(load, str(args.model))
    work = batches(args, model.config.vocab_size, model.config.max_position_embeddings)
    result = timed(stepper(model, untrained(model), objective, recompute=low), work)
    result["GB of all"] = sum(world().gather(own_memory_gb()))
    needs_reference = OBJECTIVES[objective].needs_reference
    flops = [step_flops(model, examples, needs_reference) for examples in work]
    rate = sgemm_rate(model)
    share = sum(flops) / rate / (result["s/step"] * len(work))
    return result | {"sgemm GFLOP/s": rate / 1e9, "share of sgemm": share}


def matmul_of(engine: str) -> Mode:
    """ "minibule-bfloat16x2" -> "bfloat16x2": what it multiplies in."""
    return next((mode for mode in TERMS if engine == f"minibule-{mode}"), "float32")


def own_memory_gb() -> float:
    """Memory of this process now, of what it shares with others its part; Linux alone says."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return memory_gb()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e9


def step_flops(model: Llama, examples: list[Example], needs_reference: bool) -> float:
    """Matrix products of a step over the packed tokens: forward, and backward to the input."""
    config = model.config
    linear = sum(np.prod(config.projection_shape(name)) for name in PROJECTIONS)
    linear *= config.num_hidden_layers
    head = model.head.size
    total = 0.0
    for batch in pack(examples, "position", TrainConfig().pass_tokens):
        forwards = 3 if needs_reference else 2
        total += 2.0 * forwards * (linear * len(batch.ids) + head * len(batch.rows_at))
    return total


def sgemm_rate(model: Llama) -> float:
    """Floating-point operations a second of NumPy's product on the model's largest layer."""
    W = widened(model.weights["model.layers.0.mlp.up_proj.weight"])
    x = np.ones((1024, W.shape[1]), np.float32)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        x @ W.T
        seconds.append(time.perf_counter() - started)
    return 2.0 * len(x) * W.size / median(seconds)


# -- a step: torch ---------------------------------------------------------------------------------


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


# -- a step: both ----------------------------------------------------------------------------------


def timed(step: Step, work: list[list[Example]]) -> Result:
    """Seconds of a step after a first that is not counted, and the peak of memory.

    All losses, the first step's among them, and its gradient as a `sketch`.
    """
    first, grads = step(work[0])
    gradient = sketch(grads)
    del grads
    started = time.perf_counter()
    losses = [first, *(step(examples)[0] for examples in work)]
    seconds = (time.perf_counter() - started) / len(work)
    tokens = sum(len(e.prompt) + sum(map(len, e.answers)) for batch in work for e in batch)
    return {
        "s/step": seconds,
        "tokens/s": tokens / len(work) / seconds,  # each prompt counted once, for every engine
        "peak GB": peak_memory_gb(),
        "losses": losses,
        "gradient": gradient,
    }


def sketch(grads: Gradients, size: int = 4096) -> list[float]:
    """Random signed sums of a gradient's numbers, the same sums for every engine.

    How far two sketches are apart is, to some hundredths, how far the gradients are.
    """
    rng, sums = np.random.default_rng(0), np.zeros(size)
    for name in sorted(grads):
        grad = np.asarray(grads[name], np.float64).ravel()
        signed = grad * rng.choice((-1.0, 1.0), grad.size)
        sums += np.bincount(rng.integers(0, size, grad.size), signed, size)
    return sums.tolist()


def distances(result: Result, other: Result) -> Result:
    """How far losses and gradient are from another engine's, relative to it."""
    losses, expected = np.array(result["losses"]), np.array(other["losses"])
    gradient, its = np.array(result["gradient"]), np.array(other["gradient"])
    return {
        "loss": float(np.abs(losses / expected - 1).max()),
        "gradient": float(np.linalg.norm(gradient - its) / np.linalg.norm(its)),
    }


# Ranks and the threads of each.
RANKS = {"1x1": (1, 1), "1x2": (1, 2), "2x1": (2, 1), "4x1": (4, 1)}

STEP_ENGINES: dict[str, Callable[[argparse.Namespace], Result]] = {
    "minibule": run_minibule,
    "minibule-low": run_minibule,
    "minibule-reference": run_minibule,
    "minibule-rate": run_minibule,
    **{f"minibule-{mode}": run_minibule for mode in TERMS},
    **dict.fromkeys((f"minibule-{name}" for name in RANKS), run_minibule),
    "torch-float32": run_torch,
    "torch-bfloat16": run_torch,
}


def bench_step(args: argparse.Namespace, argv: list[str]) -> None:
    engines = args.engines or ["minibule", "torch-float32", "torch-bfloat16"]
    results = in_turn(engines, argv, args.rounds)
    columns = ["s/step", "tokens/s", "peak GB"]
    columns += ["GB of all"] if any(name.rpartition("-")[2] in RANKS for name in engines) else []
    print_table(
        results, columns, {"time": (engines[0], "s/step"), "memory": (engines[0], "peak GB")}
    )
    for name in engines:
        if "share of sgemm" in results[name][0]:
            rate, share = (
                spread(results[name], key) for key in ("sgemm GFLOP/s", "share of sgemm")
            )
            print(f"\n{name}: share of sgemm {share}, sgemm {rate} GFLOP/s")
    print_distances(results)


def print_distances(results: Mapping[str, list[Result]]) -> None:
    """A table of the engines that have the first one's loss, where there are others."""
    first, *others = (n for n in results if n.removeprefix("minibule-") not in OBJECTIVES)
    if not others:
        return
    print(f"\nHow far from {first}, relative to it: the losses at most, and the first gradient\n")
    print("| engine | losses | gradient |\n|---|---|---|")
    for name in others:
        pairs = zip(results[name], results[first], strict=True)
        far = [distances(result, other) for result, other in pairs]
        loss, gradient = (median(one[key] for one in far) for key in ("loss", "gradient"))
        print(f"| {name} | {loss:.1e} | {gradient:.1e} |")


# -- generate --------------------------------------------------------------------------------------


def generation_rates(args: argparse.Namespace, tokens: Callable[..., list[float]]) -> Result:
    """tokens(sequences, prompt, new) gives the moments of the start and of each new token.

    minibule's takes a temperature, too.
    """
    tokens(1, args.prompt, 2)  # not counted
    start, first = tokens(1, args.prompt, 1)
    alone = np.diff(tokens(1, args.context, args.new)[1:])
    together = np.diff(tokens(args.batch, args.context, args.new_batch)[1:])
    sampled = {}
    if args.engine.startswith("minibule"):
        at_once = [
            float(np.diff(tokens(args.sampled, args.context, args.new_batch, t)[1:]).mean())
            for t in (0.0, 1.0)
        ]
        sampled = {
            f"{args.sampled} at once": args.sampled / at_once[0],
            f"{args.sampled} sampled": args.sampled / at_once[1],
            "sampled / greedy": at_once[0] / at_once[1],
        }
    return sampled | {
        "prefill": args.prompt / (first - start),
        "decode": 1 / float(alone.mean()),
        f"{args.batch} at once": args.batch / float(together.mean()),
        f"{args.batch} at once / decode": args.batch * float(alone.mean() / together.mean()),
        "peak GB": peak_memory_gb(),
    }


def generate_minibule(args: argparse.Namespace) -> Result:
    model = load_model(args.model, matmul=matmul_of(args.engine))
    if args.engine == "minibule-lora":
        model.adapter = untrained(model)
    rng = np.random.default_rng(0)

    def tokens(sequences: int, prompt: int, new: int, temperature: float = 0.0) -> list[float]:
        prompts = [rng.integers(0, model.config.vocab_size, prompt) for _ in range(sequences)]
        moments = [time.perf_counter()]
        generate(
            model,
            prompts,
            stop=frozenset(),
            max_new_tokens=new,
            sampling=Sampling(temperature),
            on_token=lambda sequence, _: sequence or moments.append(time.perf_counter()),
        )
        return moments

    return generation_rates(args, tokens)


def generate_llama_cpp(args: argparse.Namespace) -> Result:
    """llama.cpp through its own C interface: float32 weights, keys and values, greedy."""
    import llama_cpp as cpp

    cpp.llama_backend_init()
    model_params = cpp.llama_model_default_params()
    model_params.use_mmap = False
    model = cpp.llama_model_load_from_file(str(args.gguf).encode(), model_params)
    vocab = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    rng = np.random.default_rng(0)

    def tokens(sequences: int, prompt: int, new: int) -> list[float]:
        params = cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = sequences * (prompt + new), sequences
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = os.cpu_count() or 1
        params.type_k = params.type_v = cpp.GGML_TYPE_F32
        params.flash_attn_type = int(args.engine == "llama.cpp-flash")
        context = cpp.llama_init_from_model(model, params)
        batch = cpp.llama_batch_init(max(prompt, sequences), 0, sequences)

        def decode(entries: Sequence[tuple[int, int, int, bool]]) -> list[int]:
            """Run (token, position, sequence, wanted) entries; the next token of each wanted."""
            batch.n_tokens = len(entries)
            for i, (token, position, sequence, wanted) in enumerate(entries):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if cpp.llama_decode(context, batch):
                raise InputError("llama.cpp could not decode.")
            logits = (
                cpp.llama_get_logits_ith(context, i) for i, entry in enumerate(entries) if entry[3]
            )
            return [int(np.ctypeslib.as_array(z, (vocab,)).argmax()) for z in logits]

        prompts = rng.integers(0, vocab, (sequences, prompt)).tolist()
        moments, last = [time.perf_counter()], []
        for s, ids in enumerate(prompts):
            last += decode([(token, i, s, i + 1 == prompt) for i, token in enumerate(ids)])
        moments.append(time.perf_counter())
        for i in range(new - 1):
            last = decode([(token, prompt + i, s, True) for s, token in enumerate(last)])
            moments.append(time.perf_counter())
        cpp.llama_batch_free(batch)
        cpp.llama_free(context)
        return moments

    return generation_rates(args, tokens)


GENERATE_ENGINES = {
    "llama.cpp": generate_llama_cpp,
    "llama.cpp-flash": generate_llama_cpp,
    "minibule": generate_minibule,
    "minibule-lora": generate_minibule,
    **{f"minibule-{mode}": generate_minibule for mode in TERMS},
}


def needed_by(engine: str) -> str:
    """The module that an engine of `generate` is made of."""
    if matmul_of(engine) != "float32":
        return "numkong"
    return "minibule" if engine.startswith("minibule") else "llama_cpp"


def bench_generate(args: argparse.Namespace, argv: list[str]) -> None:
    there = [n for n in GENERATE_ENGINES if find_spec(needed_by(n))]
    engines = args.engines or there
    with TemporaryDirectory() as folder:
        gguf = Path(folder) / "f32.gguf"
        if any(name.startswith("llama.cpp") for name in engines):
            export(load_model(args.model), load_chat(args.model), "gguf", "f32", gguf)
        results = in_turn(engines, [*argv, "--gguf", str(gguf)], args.rounds)
    many = f"{args.batch} at once"
    sampled = (f"{args.sampled} at once", f"{args.sampled} sampled", "sampled / greedy")
    columns = ("prefill", "decode", many, f"{many} / decode", *sampled, "peak GB")
    against = {name: (engines[0], name) for name in ("prefill", "decode", many)}
    print_table(results, columns, against)
    print(
        f"\ntokens/s: prefill of {args.prompt} tokens; decode of {args.new} after {args.context}, "
        f"and of {args.new_batch} of each of {args.batch} or {args.sampled} sequences at once, "
        "greedily or sampled at temperature 1"
    )


# -- export ----------------------------------------------------------------------------------------

EXPORTS = ("gguf-f32", "gguf-f16", "gguf-q8_0", "hf-f32", "hf-bf16")


def export_one(args: argparse.Namespace) -> Result:
    form, _, dtype = args.engine.partition("-")
    model, chat = load_model(args.model), load_chat(args.model)
    model.adapter = untrained(model)
    loaded = memory_gb()
    with TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        started = time.perf_counter()
        export(model, chat, form, dtype, output)
        seconds = time.perf_counter() - started
        files = [output] if output.is_file() else list(output.iterdir())
        written = sum(file.stat().st_size for file in files) / 1e9
    return {"seconds": seconds, "GB": written, "loaded GB": loaded, "peak GB": peak_memory_gb()}


def bench_export(args: argparse.Namespace, argv: list[str]) -> None:
    results = in_turn(args.engines or EXPORTS, argv, args.rounds)
    print_table(results, ("seconds", "GB", "loaded GB", "peak GB"), {})
    print(
        "\nseconds of merging a rank-16 adapter and writing; GB of the file; memory of the process"
    )


# -- start -----------------------------------------------------------------------------------------


def start_import(_args: argparse.Namespace) -> Result:
    """Seconds that `import minibule` adds to an empty Python."""
    bare, ours = (seconds_of([sys.executable, "-c", code]) for code in ("", "import minibule"))
    return {"seconds": ours - bare}


def start_read(args: argparse.Namespace) -> Result:
    """Seconds of the weight files' plain bytes, and of `load_model` as training calls it."""
    started = time.perf_counter()
    for file in args.model.glob("*.safetensors"):
        with file.open("rb", buffering=0) as raw:
            while raw.read(2**24):
                pass
    plain = time.perf_counter() - started
    started = time.perf_counter()
    load_model(args.model, narrow=True)
    return {"seconds": time.perf_counter() - started, "of them the file's bytes": plain}


def start_train(args: argparse.Namespace) -> Result:
    """Seconds from the command to the moment its first step begins.

    That moment is when the step's line of metrics appears, less the seconds that it reports.
    """
    with TemporaryDirectory() as folder:
        flags = ["--model", args.model, "--data", args.data, "--output", f"{folder}/run"]
        flags += ["--steps", "1", "--eval-fraction", "0", "--max-records", "100"]
        flags += ["--max-rejected", "1", "--max-length", "128"]  # the step itself is not the point
        metrics = Path(folder) / "run" / "metrics.jsonl"
        started = time.perf_counter()
        with (Path(folder) / "err").open("w+") as err:
            train = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "minibule.train", *map(str, flags)],
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
            try:
                while not metrics.exists() or not metrics.read_bytes().endswith(b"\n"):
                    if train.poll():
                        err.seek(0)
                        raise InputError(f"the training failed:\n{err.read()[-2000:]}")
                    time.sleep(0.002)
                there = time.perf_counter() - started
            finally:
                train.kill()
                train.wait()
        line = json.loads(metrics.read_text().splitlines()[0])
    return {"seconds": there - line["seconds"]}


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)  # noqa: S603 - our own commands
    return time.perf_counter() - started


STARTS = {
    "import minibule": start_import,
    "load_model": start_read,
    "command to first step": start_train,
}


def bench_start(args: argparse.Namespace, argv: list[str]) -> None:
    results = in_turn(list(STARTS), argv, args.rounds)
    print_table(results, ("seconds", "of them the file's bytes"), {})
    beyond = [
        {"seconds": whole["seconds"] - read["seconds"]}
        for whole, read in zip(results["command to first step"], results["load_model"], strict=True)
    ]
    print(f"\nto the first step beyond load_model: {spread(beyond, 'seconds')} s")


# -- growth ----------------------------------------------------------------------------------------

GROWTH: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens": ("tokens of a sequence, half of them answer", (128, 256, 512, 1024, 2048, 4096)),
    "answers": ("rejected answers of 64 tokens to a prompt of 384", (1, 2, 4, 8)),
    "layers": ("layers adapted, from the last down", (1, 2, 4, 8, 16, 32)),
    "rank": ("rank of the adapter", (4, 8, 16, 32, 64, 128)),
}


def growth_point(args: argparse.Namespace) -> Result:
    """The best of some steps on one record; for layers and ranks it has 256 + 256 tokens."""
    table, _, number = args.engine.partition("=")
    value = int(number)
    lengths = {"tokens": (value // 2, value // 2), "answers": (384, *[64] * value)}
    layers, rank = value if table == "layers" else 0, value if table == "rank" else 16
    model = load_model(args.model, narrow=True)
    rng, vocab = np.random.default_rng(0), model.config.vocab_size
    step = stepper(model, untrained(model, rank, layers), "literal")
    step([random_example(rng, vocab, (32, 32))])
    example = random_example(rng, vocab, lengths.get(table, (256, 256)))
    results = [timed_once(step, example) for _ in range(args.steps)]
    return min(results, key=lambda result: result["s/step"])


def timed_once(step: Step, example: Example) -> Result:
    started = time.perf_counter()
    step([example])
    seconds = time.perf_counter() - started
    tokens = len(example.prompt) + sum(map(len, example.answers))
    return {"s/step": seconds, "tokens/s": tokens / seconds, "peak GB": peak_memory_gb()}


def bench_growth(args: argparse.Namespace, argv: list[str]) -> None:
    config = load_config(args.model)
    most = {"tokens": config.max_position_embeddings, "layers": config.num_hidden_layers}
    most["rank"] = config.hidden_size
    drawn = {}
    for table in args.tables or GROWTH:
        title, values = GROWTH[table]
        engines = [f"{table}={v}" for v in values if v <= min(args.most, most.get(table, v))]
        results = in_turn(engines, argv, args.rounds)
        print(f"\n{title}:\n")
        print_table(results, ("s/step", "tokens/s", "peak GB"), {"time": (engines[0], "s/step")})
        if table == "answers":
            last = int(engines[-1].partition("=")[2])
            shares = [
                {"share": m["s/step"] / (last * one["s/step"])}
                for m, one in zip(results[engines[-1]], results[engines[0]], strict=True)
            ]
            print(f"\n{last} answers cost {spread(shares, 'share')} of {last} x the cost of one")
        drawn[table] = {
            int(name.partition("=")[2]): median(r["s/step"] for r in rounds)
            for name, rounds in results.items()
        }
    if args.plot:
        plot_growth(drawn, args.plot)


def plot_growth(tables: Mapping[str, Mapping[int, float]], output: Path) -> None:
    """A panel a table: seconds of a step, both axes logarithmic to the base 2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(tables), 3), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (table, points) in zip(panels, tables.items(), strict=True):
        axes.loglog(list(points), list(points.values()), "o-", base=2)
        axes.set_xticks(list(points), [f"{value:,}" for value in points])
        axes.set(xlabel=table, ylabel="seconds a step")
        axes.grid(alpha=0.3)
    figure.savefig(output)


# -- rounds and tables -----------------------------------------------------------------------------


def in_turn(engines: Sequence[str], argv: list[str], rounds: int) -> dict[str, list[Result]]:
    """Measure each engine once a round, in a process of its own."""
    results: dict[str, list[Result]] = {name: [] for name in engines}
    for number in range(1, rounds + 1):
        for name in engines:
            results[name].append(measure(name, argv))
            shown = {
                key: round(value, 3)
                for key, value in results[name][-1].items()
                if isinstance(value, float)
            }
            print(f"round {number}: {name:<16} {shown}", file=sys.stderr)
    return results


def measure(engine: str, argv: list[str]) -> Result:
    command = [sys.executable, __file__, *argv, "--engine", engine]
    environment = dict(os.environ)
    if engine.rpartition("-")[2] in RANKS:
        ranks, threads = RANKS[engine.rpartition("-")[2]]
        environment["OPENBLAS_NUM_THREADS"] = str(threads)
        beside = Path(sys.executable).with_name("mpiexec")
        command = [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks), *command]
    done = subprocess.run(  # noqa: S603 - this very file
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{engine} failed:\n{done.stderr[-2000:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def spread(results: Sequence[Result], key: str) -> str:
    """The rounds' median, and their range where there are several."""
    values = [result[key] for result in results if key in result]
    if not values:
        return ""
    digits = max(0, 2 - int(np.floor(np.log10(max(abs(median(values)), 1e-3)))))
    low, middle, high = (f"{x:.{digits}f}" for x in (min(values), median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def print_table(
    results: Mapping[str, list[Result]],
    columns: Sequence[str],
    against: Mapping[str, tuple[str, str]],
) -> None:
    """Markdown: a row an engine, its columns, and ratios {title: (other engine, column)}."""
    titles = [f"{title} / {other}'s" for title, (other, _) in against.items()]
    print("| engine | " + " | ".join([*columns, *titles]) + " |")
    print("|---" * (1 + len(columns) + len(titles)) + "|")
    for name, rounds in results.items():
        cells = [spread(rounds, column) for column in columns]
        for other, column in against.values():
            pairs = zip(rounds, results[other], strict=True)
            cells.append(
                spread([{"ratio": ours[column] / its[column]} for ours, its in pairs], "ratio")
            )
        print(f"| {name} | " + " | ".join(cells) + " |")


# -- the command -----------------------------------------------------------------------------------

BENCHES = {
    "dense": (bench_step, STEP_ENGINES.get),
    "records": (bench_step, STEP_ENGINES.get),
    "generate": (bench_generate, GENERATE_ENGINES.get),
    "export": (bench_export, lambda name: export_one if name in EXPORTS else None),
    "start": (bench_start, STARTS.get),
    "growth": (bench_growth, lambda name: growth_point if name.split("=")[0] in GROWTH else None),
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases = parser.add_subparsers(dest="case", required=True)

    def names(text: str) -> list[str]:
        return text.split(",")

    for case in BENCHES:
        sub = cases.add_parser(case)
        sub.add_argument("--model", type=Path, required=True, metavar="DIR")
        rounds = 1 if case == "growth" else 5
        sub.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"({rounds})")
        sub.add_argument("--engine", help=argparse.SUPPRESS)
        if case in ("dense", "records", "generate", "export"):
            sub.add_argument("--engines", type=names, metavar="A,B", help="(all that are there)")
        if case in ("records", "start"):
            sub.add_argument("--data", type=Path, required=True, metavar="FILE")
        if case in ("dense", "records", "growth"):
            steps = 1 if case == "growth" else 2
            sub.add_argument(
                "--steps", type=int, default=steps, metavar="N", help=f"counted steps ({steps})"
            )
        if case == "generate":
            for flag, value, text in (
                ("--prompt", 512, "tokens prefilled"),
                ("--context", 128, "tokens before those decoded"),
                ("--new", 64, "tokens decoded of one sequence"),
                ("--new-batch", 16, "tokens decoded of each of a batch"),
                ("--batch", 16, "sequences of a batch"),
                ("--sampled", 64, "sequences of a batch that is sampled, too"),
            ):
                sub.add_argument(
                    flag, type=int, default=value, metavar="N", help=f"{text} ({value})"
                )
            sub.add_argument("--gguf", type=Path, help=argparse.SUPPRESS)
        if case == "growth":
            sub.add_argument("--tables", type=names, metavar="A,B", help=f"of {','.join(GROWTH)}")
            sub.add_argument(
                "--most", type=int, default=4096, metavar="N", help="of anything (4096)"
            )
            sub.add_argument("--plot", type=Path, metavar="FILE.svg")
    args = parser.parse_args(argv)
    given = [*(getattr(args, "engines", None) or []), *([args.engine] if args.engine else [])]
    for name in given:
        if not BENCHES[args.case][1](name):
            parser.error(f"engine {name}: {args.case} has none of that name")
    for table in getattr(args, "tables", None) or []:
        if table not in GROWTH:
            parser.error(f"--tables {table}: expected some of {','.join(GROWTH)}")
    return args


@together
def main(argv: list[str]) -> None:
    args = parse(argv)
    bench, engine = BENCHES[args.case]
    if args.engine:
        print(json.dumps(engine(args.engine)(args)))
    else:
        bench(args, argv)


if __name__ == "__main__":
    run(main)
