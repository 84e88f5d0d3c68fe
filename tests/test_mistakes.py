"""Seven classic mistakes, each planted in a copy of the package: the lesson's own tests notice.

A test that nobody has seen fail may be one that cannot. A training run is no test, either: with the
first of these mistakes it ends at the same numbers (Adam divides the factor out), and with RoPE
turned the wrong way it still learns.
"""

import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
from helpers import ROOT


class Mistake(NamedTuple):
    """`right`, a regular expression that fits one place of minibule/core, becomes `wrong`."""

    right: str
    wrong: str
    noticed_by: str


MISTAKES = {
    "LoRA: the scaling forgotten on the way to dx and dA": Mistake(
        r"scaling \* \(dy @ B\)",
        r"dy @ B",
        "tests/core/test_lora.py::test_backward_is_the_gradient[one block]",
    ),
    "RMSNorm: without the projection, as if rstd did not depend on x": Mistake(
        r"\bg -= n\b",
        r"pass",
        "tests/core/test_ops.py::test_backward_is_the_gradient[rms_norm-one]",
    ),
    "contrast: a = w p / (1 - p) in place of w p at j = i": Mistake(
        r"\bw \* p - others \* p\b",
        r"a - others * p",
        "tests/core/test_complement.py::test_dense_gradient[uniform-position-plain-0.7]",
    ),
    "RoPE: turned the same way again": Mistake(
        r"rope\(dy, cos, -sin\)",
        r"rope(dy, cos, sin)",
        "tests/core/test_ops.py::test_backward_is_the_gradient[rope-one]",
    ),
    "forest: keys that several segments read get the last one's gradient": Mistake(
        r"\bdk\[keys\] \+=",
        r"dk[keys] =",
        "tests/core/test_ops.py::test_backward_is_the_gradient[attention-one]",
    ),
    "softmax: without the sum over what was looked at": Mistake(
        r"\bds -= inner\b",
        r"pass",
        "tests/core/test_ops.py::test_backward_is_the_gradient[attention-one]",
    ),
    "block: the residual forgotten": Mistake(
        r"\bdx \+ (.*input_layernorm)",
        r"\1",
        "tests/core/test_llama.py::"
        "test_adapter_gradients_are_the_gradient_of_the_loss[uniform-position-plain-0.7]",
    ),
}


@pytest.fixture
def clone(tmp_path):
    """A copy of the package and of the lesson's tests: what `git clone` gives, and more quickly."""
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("minibule", "tests/core"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignore)
    for file in ("pyproject.toml", "tests/conftest.py", "tests/helpers.py"):
        shutil.copy(ROOT / file, tmp_path / file)
    return tmp_path


def run_pytest(clone, *tests):
    """The plain command `pytest TESTS` in the clone: what it returns and prints.

    Nothing of ours is on its path (-P: nor the current folder), so it is pyproject.toml that must
    lead it to the clone, also where another minibule is installed.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    env["OPENBLAS_NUM_THREADS"] = "1"  # small matrices: threads would only wait for each other
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--tb=no", "-rf", *tests],
        cwd=clone,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def plant(clone, mistake):
    """Make the mistake, in the one place where it can be made."""
    places = [
        (path, found)
        for path in sorted((clone / "minibule" / "core").rglob("*.py"))
        for found in re.finditer(mistake.right, path.read_text())
    ]
    assert len(places) == 1, [f"{path.name}: {found.group()}" for path, found in places]
    ((path, _),) = places
    path.write_text(re.sub(mistake.right, mistake.wrong, path.read_text()))


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_noticed(clone, mistake):
    plant(clone, mistake)
    status, out = run_pytest(clone, mistake.noticed_by)
    assert status == 1 and f"FAILED {mistake.noticed_by}" in out, out


def test_without_a_mistake_they_pass(clone):
    status, out = run_pytest(clone, *{mistake.noticed_by for mistake in MISTAKES.values()})
    assert status == 0, out


def test_a_mistake_is_planted_in_one_place_only(clone):
    for nowhere_or_everywhere in ("no such line", "return"):
        with pytest.raises(AssertionError):
            plant(clone, Mistake(nowhere_or_everywhere, "", ""))
