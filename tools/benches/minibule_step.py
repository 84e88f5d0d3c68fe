"""minibule's training step, and the share of its time that matrix products alone would need."""

import argparse
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from benches.names import KNOWN, matmul_of, objective_of
from benches.timing import Gradients, Step, timed
from benches.turns import Result
from benches.work import LR, batches, untrained

from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.core.lora import Adapter
from minibule.core.objective import OBJECTIVES
from minibule.core.optim import AdamW
from minibule.core.shapes import PROJECTIONS
from minibule.core.step import Known, gradients
from minibule.machine.half import widened
from minibule.machine.ranks import world
from minibule.machine.threads import memory_gb
from minibule.methods.table import LOSSES
from minibule.models.load import load_model
from minibule.runs.settings import TrainConfig
from minibule.train.reference import Reference


def stepper(
    model: Llama,
    adapter: Adapter,
    objective: str,
    recompute: bool = False,
    known: Known | None = None,
) -> Step:
    """One step of training on a batch; returns its loss and gradients."""
    model.adapter = adapter
    optimiser = AdamW(adapter.params, 0.0)
    config = TrainConfig()

    def step(examples: list[Example]) -> tuple[float, Gradients]:
        grads, metrics, _ = gradients(
            model, examples, LOSSES[objective], config.pass_tokens, recompute, known
        )
        optimiser.step(grads, LR)
        return metrics["loss"], grads

    return step


def run_minibule(args: argparse.Namespace) -> Result:
    objective = objective_of(args.engine)
    load = partial(load_model, args.model, narrow=True, matmul=matmul_of(args.engine))
    model = world().one_a_machine(load, str(args.model))
    work = batches(args, model.config)
    low = args.engine == "minibule-low"
    examples = [example for batch in work for example in batch]
    with Reference(model, examples, None, limit=1e9) as reference:
        known = None
        if args.engine.endswith(KNOWN):  # asked here, and not in the steps that are timed
            for _ in reference.sweep(TrainConfig().pass_tokens):
                pass
            known = reference.hidden
        result = timed(stepper(model, untrained(model.config), objective, low, known), work)
    result["GB of all"] = sum(world().all_gather(own_memory_gb()))
    asks = OBJECTIVES[objective].needs_reference and not known
    flops = [step_flops(model, examples, asks) for examples in work]
    rate = sgemm_rate(model)
    share = sum(flops) / rate / (result["s/step"] * len(work))
    return result | {"sgemm GFLOP/s": rate / 1e9, "share of sgemm": share}


def own_memory_gb() -> float:
    """Memory of this process now, of what it shares with others its part; Linux alone says."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return memory_gb()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e9


def step_flops(model: Llama, examples: list[Example], asks_base: bool) -> float:
    """Matrix products of a step over the packed tokens: forward, and backward to the input."""
    config = model.config
    linear = sum(np.prod(config.projection_shape(name)) for name in PROJECTIONS)
    linear *= config.num_hidden_layers
    head = model.head.size
    total = 0.0
    for batch in pack(examples, "position", TrainConfig().pass_tokens):
        forwards = 3 if asks_base else 2
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
