"""Kill commands at random moments, and see that nothing is lost; run a long one, and watch it.

    python tools/survive.py kill    runs killed by SIGKILL and resumed must end as one never killed
    python tools/survive.py rounds  and so must rounds, killed while they sample, train or evaluate
    python tools/survive.py export  what a killed export leaves is whole or not there,
    python tools/survive.py report  and so is a report; the next command leaves nothing else behind
    python tools/survive.py long    5,000 steps must not need more and more memory

All use the embedded model, rounds also another (--model), with one processor thread a process, so
that two can run at a time. The exit status is 1 where something was lost.
"""

import argparse
import filecmp
import json
import os
import random
import shutil
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
from minibule.report.sections import write_report
from minibule.rounds.settings import RoundsConfig

CLOCK = ("seconds", "tokens_per_s", "rss_gb")  # what differs between equal runs
# Data that is named brings no held-out questions with it: a run's time is then all training.
SETTINGS = (
    *("--preset=tiny", f"--data={embedded_folder() / 'records.jsonl'}", "--max-records=40"),
    *("--probe=", "--eval-fraction=0", "--export=none", "--batch-size=2"),
)
RESULTS = ("adapter_model.safetensors", "adapter_config.json")


def command(output: Path, *flags: str) -> list[str]:
    return minibule("train", "--output", output, *flags)


def minibule(name: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-m", f"minibule.{name}", *map(str, words)]


def environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parent.parent)
    return os.environ | {"PYTHONPATH": package, "OPENBLAS_NUM_THREADS": "1"}


def ended(output: Path, *flags: str) -> None:
    """Run to the end; InputError with what it printed where it fails."""
    done(command(output, *flags))


def done(words: list[str]) -> None:
    ran = subprocess.run(  # noqa: S603 - this very program
        words, capture_output=True, text=True, check=False, env=environment()
    )
    if ran.returncode:
        raise InputError(f"{words[-1]}: exit status {ran.returncode}\n{ran.stderr[-2000:]}")


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


# -- rounds ----------------------------------------------------------------------------------------

ROUNDS = ("--rounds=2", "--samples=4", "--max-new-tokens=24", "--threads=1")
QUESTIONS = 24  # of the model's, asked for samples; and as many others afterwards


def questions(folder: Path, model: str) -> list[str]:
    """Flags that name the model and some of its questions, every kind among them."""
    flags = [f"--model={model}"]
    _, *files = RoundsConfig(model=model).resolved_files()
    for flag, file in zip(("data", "heldout"), files, strict=True):
        lines = file.read_text().splitlines(keepends=True)
        (folder / file.name).write_text("".join(lines[:: len(lines) // QUESTIONS][:QUESTIONS]))
        flags.append(f"--{flag}={folder / file.name}")
    return flags


def rounds_results(place: Path) -> dict[str, bytes | list[dict[str, object]]]:
    """All that rounds come to: samples, adapters, and the figures of each but for the seconds."""
    lines = map(json.loads, (place / "rounds.jsonl").read_text().splitlines())
    figures = [{k: v for k, v in x.items() if not k.endswith("_seconds")} for x in lines]
    kinds = ("samples.jsonl*", "answers.jsonl*", "adapter/*.safetensors")
    files = [file for kind in kinds for file in sorted(place.glob(f"round-*/{kind}"))]
    return {"rounds.jsonl": figures} | {str(f.relative_to(place)): f.read_bytes() for f in files}


def one_life_of_rounds(seed: str, folder: Path, flags: list[str], seconds: float) -> int:
    """Rounds killed up to three times at moments within `seconds`, and resumed; how many came."""
    rng = random.Random(seed)
    output, kills = folder / seed.replace(" ", "-"), 0
    for _ in range(3):
        going = (output / "rounds.toml").exists()
        words = minibule("rounds", "--output", output, *(["--resume"] if going else flags))
        with subprocess.Popen(  # noqa: S603
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        ) as process:
            try:
                if process.wait(rng.uniform(0, seconds)):
                    raise InputError(f"{output}: exit status {process.returncode}")
                return kills
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
    if (output / "rounds.toml").exists():
        done(minibule("rounds", "--output", output, "--resume"))
    else:
        _remove(output)
        done(minibule("rounds", "--output", output, *flags))
    return kills


def rounds(times: int, seed: int, model: str, folder: Path) -> bool:
    """Print the counts; True where nothing was lost."""
    flags = [*questions(folder, model), *ROUNDS]
    started = time.monotonic()
    done(minibule("rounds", "--output", folder / "whole", *flags))
    seconds = time.monotonic() - started
    expected = rounds_results(folder / "whole")

    def life(number: int) -> tuple[int, list[str]]:
        name = f"{seed} {number}"
        kills = one_life_of_rounds(name, folder, flags, seconds)
        found = rounds_results(folder / name.replace(" ", "-"))
        names = sorted(found.keys() | expected.keys())
        return kills, [name for name in names if found.get(name) != expected.get(name)]

    with ThreadPoolExecutor(2) as pool:
        lives = list(pool.map(life, range(times)))
    differing = [f"{n}: {', '.join(lost)}" for n, (_, lost) in enumerate(lives) if lost]
    print(f"rounds                                  {times} times")
    print(f"kills                                   {sum(kills for kills, _ in lives)}")
    print(f"that differ from ones never killed      {len(differing)}")
    for line in differing:
        print(f"  {line}")
    return not differing


# -- export and report -----------------------------------------------------------------------------

EXPORTS = (["gguf", "--dtype=f32"], ["gguf", "--dtype=q8_0"], ["hf"], ["gguf-lora"])


class Death(NamedTuple):
    """What a killed command left behind: `lost` names what should not be so."""

    in_write: bool  # it left a half-written file or folder, for the next command to remove
    whole: bool  # the output was there already
    lost: list[str]


def one_death(seed: str, words: list[str], output: Path, expected: Path) -> Death:
    """Kill the command that writes `output`, look at what is there, and run it again."""
    rng = random.Random(seed)
    before = _names(output.parent)
    good = output.read_bytes() if output.is_file() else None
    while not _killed(words, output, rng):  # it was done before its moment came: once more
        _remove(output)
        if good is not None:
            output.write_bytes(good)
    left, there = _names(output.parent) - before, output.exists()
    lost = [] if not there or _same(output, expected) else [f"{output.name} is not whole"]
    if good is None:  # an export replaces nothing
        _remove(output)
    done(words)
    if not _same(output, expected):
        lost.append(f"{output.name} differs from that of a command never killed")
    lost += [f"{name} is left behind" for name in _names(output.parent) - before - {output.name}]
    return Death(any(name.endswith(".partial") for name in left), there, lost)


def _killed(words: list[str], output: Path, rng: random.Random) -> bool:
    """SIGKILL at a random moment; whether it came before the end.

    Half of the kills wait until the output is in the making; the others fall anywhere.
    """
    aimed = rng.random() < 0.5
    deadline = time.monotonic() + (60 if aimed else rng.uniform(0, 1.5))
    with subprocess.Popen(  # noqa: S603
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        while time.monotonic() < deadline and process.poll() is None:
            if aimed and any(output.parent.glob(".*.partial")):
                time.sleep(rng.choice([0, 0.001, 0.01]) * rng.random())
                break
            time.sleep(0.0002)
        process.kill()
    return process.returncode == -signal.SIGKILL


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _same(one: Path, other: Path) -> bool:
    """Whether two files, or the files of two folders, hold the same bytes."""
    if one.is_dir() != other.is_dir():
        return False
    if not one.is_dir():
        return filecmp.cmp(one, other, shallow=False)
    names = sorted(_names(one) | _names(other))
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def die(what: str, times: int, seed: int, folder: Path) -> bool:
    """Print the counts; True where nothing was lost."""
    run = folder / "run"
    ended(run, *SETTINGS, "--steps=2")
    jobs: list[tuple[str, list[str], Path, Path]] = []
    for number in range(times):
        place = folder / str(number)
        if what == "report":
            shutil.copytree(run, place / "run")
            output, expected = write_report(place / "run"), place / "expected.html"
            shutil.copy(output, expected)
            if number % 2:  # a report is written anew, or for the first time
                output.unlink()
            jobs.append((f"{seed} {number}", minibule("report", place / "run"), output, expected))
            continue
        place.mkdir()
        form, *dtype = EXPORTS[number % len(EXPORTS)]
        flags = ["--adapter", run / "adapter", "--format", form, *dtype, "--output"]
        output, expected = (p / "-".join([form, *dtype]) for p in (place, folder))
        if not expected.exists():
            done(minibule("export", *flags, expected))
        jobs.append((f"{seed} {number}", minibule("export", *flags, output), output, expected))
    with ThreadPoolExecutor(2) as pool:
        deaths = list(pool.map(lambda job: one_death(*job), jobs))
    lost = [f"{n}: {', '.join(death.lost)}" for n, death in enumerate(deaths) if death.lost]
    print(f"kills                                   {times}")
    print(f"  while the output was being written    {sum(death.in_write for death in deaths)}")
    print(f"outputs that were there, and whole      {sum(death.whole for death in deaths)}")
    print(f"outputs not whole, or something left    {len(lost)}")
    for line in lost:
        print(f"  {line}")
    return not lost


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
    parser.add_argument("what", choices=["kill", "rounds", "export", "report", "long"])
    parser.add_argument(
        "--runs", type=int, default=100, metavar="N", help="runs or commands to kill"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of a run (12; long: 5000)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="of a run, at most")
    parser.add_argument(
        "--slope", type=float, default=1000.0, metavar="X", help="bytes a step that are allowed"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the moments")
    parser.add_argument(
        "--model", default="", metavar="NAME", help="of rounds, such as smollm2-135m (the embedded)"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        if args.what == "kill":
            fine = kill(args.runs, args.steps or 12, args.kills, Path(name))
        elif args.what == "rounds":
            fine = rounds(args.runs, args.seed, args.model, Path(name))
        elif args.what != "long":
            fine = die(args.what, args.runs, args.seed, Path(name))
        else:
            fine = long(args.steps or 5000, args.slope, Path(name))
    if not fine:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
