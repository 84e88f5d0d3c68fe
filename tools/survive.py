"""Kill training runs at random moments, and see that nothing is lost; run a long one, and watch it.

    python tools/survive.py kill    runs killed by SIGKILL and resumed must end as one never killed
    python tools/survive.py long    5,000 steps must not need more and more memory

Both train the embedded model, with one processor thread a process, so that two can run at a time.
The exit status is 1 where something was lost.
"""

import argparse
import filecmp
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.program import run

CLOCK = ("seconds", "tokens_per_s", "rss_gb")  # what differs between equal runs
# Data that is named brings no held-out questions with it: a run's time is then all training.
SETTINGS = (
    *("--preset=tiny", f"--data={embedded_folder() / 'records.jsonl'}", "--max-records=40"),
    *("--probe=", "--eval-fraction=0", "--export=none", "--batch-size=2"),
)
RESULTS = ("adapter_model.safetensors", "adapter_config.json")


def command(output: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "minibule.train", "--output", str(output), *flags]


def environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parent.parent)
    return os.environ | {"PYTHONPATH": package, "OPENBLAS_NUM_THREADS": "1"}


def ended(output: Path, *flags: str) -> None:
    """Run to the end; InputError with what it printed where it fails."""
    done = subprocess.run(  # noqa: S603 - this very program
        command(output, *flags), capture_output=True, text=True, check=False, env=environment()
    )
    if done.returncode:
        raise InputError(f"{output}: exit status {done.returncode}\n{done.stderr[-2000:]}")


def metrics(output: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl, without what a clock measured."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCK} for line in lines]


def differences(output: Path, expected: Path) -> list[str]:
    """What differs from the run that was never killed."""
    found = [
        name
        for name in RESULTS
        if not filecmp.cmp(output / "adapter" / name, expected / "adapter" / name, shallow=False)
    ]
    return found + ["metrics.jsonl"] * (metrics(output) != metrics(expected))


# -- kill ------------------------------------------------------------------------------------------


class Life(NamedTuple):
    """What happened to one run."""

    kills: int
    in_steps: int  # kills after the first step and before the last
    in_write: int  # kills that left a half-written file
    damaged: int  # checkpoints that could not be read
    differs: list[str]


def one_life(number: int, folder: Path, settings: list[str], expected: Path, most: int) -> Life:
    """One run, killed up to `most` times at random moments, then resumed to its end."""
    rng = random.Random(number)
    output = folder / f"run-{number}"
    kills = in_steps = in_write = damaged = 0
    deaths = rng.randint(1, most)
    while True:
        resumes = (output / "config.toml").exists()
        flags = ["--resume"] if resumes else settings
        log = folder / f"run-{number}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(  # noqa: S603
                command(output, *flags), stdout=file, stderr=subprocess.STDOUT, env=environment()
            )
            killed = kills < deaths and _kill_sometime(process, output, rng)
            process.wait()
        text = log.read_text(errors="replace")
        damaged += text.count("damaged  ") + text.count("no checkpoint can be used")
        if killed:
            kills += 1
            in_steps += (output / "metrics.jsonl").exists() and not (output / "adapter").exists()
            in_write += any(output.glob("checkpoint/.*.partial"))
        elif process.returncode:
            raise InputError(f"{output}: exit status {process.returncode}\n{text[-2000:]}")
        else:
            return Life(kills, in_steps, in_write, damaged, differences(output, expected))


def _kill_sometime(process: subprocess.Popen[bytes], output: Path, rng: random.Random) -> bool:
    """SIGKILL at a random moment; whether it came before the end.

    Half of the kills wait for a checkpoint to be in the making; the others fall anywhere.
    """
    aimed = rng.random() < 0.5
    after = rng.randint(1, 6)  # the how-manieth checkpoint that is seen being written
    deadline = time.monotonic() + 300 if aimed else time.monotonic() + rng.uniform(0, 3)
    seen: set[str] = set()
    while time.monotonic() < deadline and process.poll() is None:
        if aimed:
            partials = {path.name for path in output.glob("checkpoint/.*.partial")}
            seen |= partials
            if partials and len(seen) >= after:
                break
        time.sleep(0.0002 if aimed else 0.01)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill(runs: int, steps: int, most: int, folder: Path) -> bool:
    """Print the counts; True where nothing was lost."""
    settings = [*SETTINGS, "--grad-accum=2", f"--steps={steps}", "--save-every=1"]
    expected = folder / "never-killed"
    ended(expected, *settings)
    with ThreadPoolExecutor(2) as pool:
        lives = list(pool.map(lambda n: one_life(n, folder, settings, expected, most), range(runs)))
    differing = [
        f"run {n}: {', '.join(life.differs)}" for n, life in enumerate(lives) if life.differs
    ]
    damaged = sum(life.damaged for life in lives)
    print(f"runs                                    {runs}, of {steps} steps, each checkpointed")
    print(f"kills                                   {sum(life.kills for life in lives)}")
    print(f"  between the first step and the end    {sum(life.in_steps for life in lives)}")
    print(f"  while a checkpoint was being written  {sum(life.in_write for life in lives)}")
    print(f"checkpoints unreadable                  {damaged}")
    print(f"runs that differ from one never killed  {len(differing)}")
    for line in differing:
        print(f"  {line}")
    return not damaged and not differing


# -- long ------------------------------------------------------------------------------------------


def long(steps: int, most: float, folder: Path) -> bool:
    """Print how memory grew over a long run; True where it stayed within `most` bytes a step."""
    output = folder / "long"
    started = time.monotonic()
    ended(output, *SETTINGS, f"--steps={steps}", "--save-every=20")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    rss = np.array([line["rss_gb"] for line in lines]) * 1e9
    warm = min(100, steps // 2)
    slope, _ = np.polyfit(np.arange(warm, steps), rss[warm:], 1)
    kept = len(list((output / "checkpoint").iterdir()))
    print(f"steps                    {len(lines):,} in {time.monotonic() - started:.0f} s")
    print(f"resident memory          {rss[warm] / 1e6:.1f} MB after step {warm}, ", end="")
    print(f"{rss[-1] / 1e6:.1f} MB at the end")
    print(f"its slope                {slope:.1f} bytes a step")
    print(f"files in checkpoint/     {kept}")
    return bool(abs(slope) <= most) and kept == 2 and len(lines) == steps


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["kill", "long"])
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="runs to kill")
    parser.add_argument("--steps", type=int, metavar="N", help="of a run (12; long: 5000)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="of a run, at most")
    parser.add_argument(
        "--slope", type=float, default=1000.0, metavar="X", help="bytes a step that are allowed"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        if args.what == "kill":
            fine = kill(args.runs, args.steps or 12, args.kills, Path(name))
        else:
            fine = long(args.steps or 5000, args.slope, Path(name))
    if not fine:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
