"""The exercises of core/EXERCISES.md by number, and the text itself."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from minibule.check import layers, loss, whole
from minibule.check.case import Case

# number -> its functions, each by the name it has in the text
EXERCISES: Mapping[int, Mapping[str, Callable[[], Case]]] = {
    1: {"complement_distribution": loss.complement_distribution},
    2: {"complement_loss": loss.complement_loss},
    3: {"log_one_minus_p": loss.log_one_minus_p},
    4: {"lora_linear_backward": layers.lora_linear_backward},
    5: {"rms_norm": layers.rms_norm, "rms_norm_backward": layers.rms_norm_backward},
    6: {"softmax": layers.softmax_forward, "softmax_backward": layers.softmax_backward},
    7: {
        "rope_angles": layers.rope_angles,
        "rope": layers.rope,
        "rope_backward": layers.rope_backward,
    },
    8: {
        "attend": layers.attend,
        "attend_backward": layers.attend_backward,
        "attention": layers.attention,
        "attention_backward": layers.attention_backward,
    },
    9: {"block": whole.block, "block_backward": whole.block_backward},
    10: {"adamw": whole.adamw},
    11: {"training_step": whole.training_step},
}
FUNCTIONS = {name: case for functions in EXERCISES.values() for name, case in functions.items()}
TEXT = Path(__file__).parent.parent / "core" / "EXERCISES.md"


@cache
def case_of(name: str) -> Case:
    """What the function of that name is given, and has to return."""
    return FUNCTIONS[name]()


def number_of(name: str) -> int:
    """The exercise that a function is part of."""
    return next(number for number, functions in EXERCISES.items() if name in functions)


def skeleton() -> str:
    """A Python file of every function with its values to be filled in, from the text."""
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT.read_text(encoding="utf-8"), re.M | re.S)
    return "\n\n".join(blocks)
