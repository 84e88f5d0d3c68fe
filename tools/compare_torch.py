"""Repeat a finished run in torch and PEFT, and set its losses beside those of minibule.

    python -m minibule.train --model DIR --data FILE --objective reference --steps 3 --output RUN
    python tools/compare_torch.py RUN

Of the objectives with a target: literal, reference and rate.

The settings come from RUN/config.toml; start adapter, records and order follow from them. Needs the
extra `oracle`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel
from torch_reference import step_gradients
from transformers import LlamaForCausalLM

from minibule.core.fused import TargetLoss
from minibule.core.objective import OBJECTIVES
from minibule.errors import InputError
from minibule.machine.threads import peak_memory_gb
from minibule.models.peft import save_adapter
from minibule.program import run
from minibule.runs.settings import read_settings
from minibule.train.setup import prepare


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    folder = parser.parse_args(argv).run
    config = read_settings(folder / "config.toml")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    setup = prepare(config)
    base = LlamaForCausalLM.from_pretrained(setup.source, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as start:
        save_adapter(setup.model.adapter, setup.model.config, Path(start) / "adapter", "base")
        model = PeftModel.from_pretrained(base, Path(start) / "adapter", is_trainable=True)
    setup.model.weights.clear()  # torch has its own copy
    params = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, weight_decay=config.weight_decay)
    if not isinstance(setup.loss, TargetLoss):
        known = ", ".join(OBJECTIVES)
        raise InputError(f"{folder}: a run of {config.objective}, expected one of {known}.")
    print(f"{'step':>4} {'minibule':>14} {'torch':>14} {'relative':>10} {'torch s':>8}")
    worst = 0.0
    for line in lines:
        started = time.perf_counter()
        step = line["step"]
        examples = setup.examples_of(step)
        optimiser.zero_grad()
        loss = step_gradients(model, examples, setup.loss.objective)
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(params, config.max_grad_norm)
        for group in optimiser.param_groups:
            group["lr"] = line["lr"]
        optimiser.step()
        error = abs(line["loss"] / loss - 1)
        worst = max(worst, error)
        seconds = time.perf_counter() - started
        print(f"{step:>4} {line['loss']:>14.9f} {loss:>14.9f} {error:>10.1e} {seconds:>8.1f}")
    print(f"largest relative difference {worst:.1e}; peak memory {peak_memory_gb():.2f} GB")


if __name__ == "__main__":
    run(main)
