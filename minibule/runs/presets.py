"""Named settings of a training run; what they leave out is as in `TrainConfig`."""

from typing import Any

# The steps that the presets, and all systems of rounds, were measured with.
PLAIN: dict[str, Any] = {"warmup_steps": 0, "max_grad_norm": 1.0}

# The reference run of the published model card is `smollm2-360m`: one epoch over 90 % of 5,000
# records, 4 a step. Its learning rate is not published; 1e-5 is a sibling implementation's.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": PLAIN | {"kl": 0.5, "lr": 1e-3, "steps": 90, "warmup_steps": 3, "eval_every": 10},
    "smollm2-360m": {
        **PLAIN,
        "objective": "literal",
        "max_records": 5000,
        "lr": 1e-5,
        "eval_fraction": 0.1,
        "epochs": 1.0,
        "batch_size": 4,
        "skip_long": True,
    },
}
EMBEDDED = "tiny"  # the preset of the embedded model; the others are made for models of their own
