"""Write tests/golden/: what transformers, torch and PEFT compute, for tests without them.

    python tools/golden.py --output tests/golden

    model/        a small random Llama, written by transformers
    adapter/      a LoRA adapter with B != 0, written by PEFT
    expected.json a sequence's logits; for each objective the loss and adapter gradients of one step
                  and the losses of ten AdamW steps; the token ids of the records they are of

Needs the extra `oracle`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch_reference import step_gradients
from transformers import LlamaConfig, LlamaForCausalLM

from minibule.core.counts import Example
from minibule.core.objective import OBJECTIVES

LR, STEPS, WEIGHT_DECAY = 1e-2, 10, 0.01


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=20,
        vocab_size=29,
        max_position_embeddings=64,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(p, 0.5, 1.5)
        else:
            torch.nn.init.normal_(p, std=0.3)
    return model


def make_adapter(model: torch.nn.Module) -> torch.nn.Module:
    config = LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    for p in adapted.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.2)
    return adapted


def make_examples() -> list[Example]:
    """Three records whose answers share their beginnings here and there."""
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(3):
        start = rng.integers(0, 29, 4)
        answers = [rng.integers(0, 29, n) for n in (3, 5, 6, 2)]
        answers[1][:2], answers[2][:3] = start[:2], start[:3]
        counts = tuple(int(c) for c in rng.integers(1, 4, len(answers)))
        examples.append(Example(rng.integers(0, 29, 5), tuple(answers), counts, sum(counts) + 2))
    return examples


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): p
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    folder = parser.parse_args().output
    model = make_model()
    model.save_pretrained(folder / "model")
    adapted = make_adapter(model)
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()  # PEFT's empty model card
    examples = make_examples()
    ids = list(range(0, 29, 2))
    with torch.no_grad():
        logits = adapted(torch.tensor(ids)[None]).logits[0]
    expected: dict[str, object] = {
        "made_with": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "ids": ids,
        "logits": logits.tolist(),
        "examples": [
            {
                "prompt": e.prompt.tolist(),
                "answers": [a.tolist() for a in e.answers],
                "counts": e.counts,
                "total_rounds": e.total_rounds,
            }
            for e in examples
        ],
        "steps": {"lr": LR, "weight_decay": WEIGHT_DECAY},
        "objectives": {},
    }
    start = {name: p.detach().clone() for name, p in trained(adapted).items()}
    for name, objective in OBJECTIVES.items():
        params = trained(adapted)
        for key, p in params.items():
            p.data = start[key].clone()
        optimiser = torch.optim.AdamW(params.values(), lr=LR, weight_decay=WEIGHT_DECAY)
        losses, grads = [], None
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss = step_gradients(adapted, examples, objective)
            grads = grads or {key: p.grad.tolist() for key, p in params.items()}
            optimiser.step()
            losses.append(loss)
        expected["objectives"][name] = {"losses": losses, "gradients": grads}
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
