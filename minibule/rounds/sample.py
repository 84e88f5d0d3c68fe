"""A round's samples: the questions put to the model, judged, and written as records.

Samples of a question depend on the seed, the round, the prompt and the sample's number alone, and
are appended question by question: sampling that stopped in the middle goes on to the same bytes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibule.core.llama import Llama
from minibule.evaluate.judge import Judge, Row
from minibule.evaluate.sampled import answers, record_row
from minibule.files import reading, writing
from minibule.generate.sampling import Sampling
from minibule.records.readers import json_lines
from minibule.rounds.settings import RoundsConfig
from minibule.text.chat import Chat

PARTIAL = ".partial"  # behind the name of a file of samples that is not yet whole


class Sampled(NamedTuple):
    """What a round's samples came to; figures under the names of the TRL library.

    Means over all samples, but for frac_reward_zero_std: the share of questions whose samples were
    all judged alike, of which a group method learns nothing.
    """

    reward: float
    reward_std: float
    frac_reward_zero_std: float
    mean_length: float
    clipped_ratio: float
    rejected: int
    accepted: int


def sample_round(
    model: Llama,
    chat: Chat,
    rows: Sequence[Row],
    judge: Judge,
    config: RoundsConfig,
    number: int,
    path: Path,
) -> Sampled:
    """Write the samples of round 1, 2, ... to `path`, unless they are there; or go on with them."""
    if not path.exists():
        part = path.with_name(path.name + PARTIAL)
        done = _whole_questions(part, config.samples)
        sampling = Sampling(config.temperature, seed=1000 * config.seed + number)
        with writing(part), part.open("a", encoding="utf-8", newline="\n") as file:
            found = answers(
                model, chat, rows[done:], judge, sampling, config.samples, config.max_new_tokens
            )
            for row, several in zip(rows[done:], found, strict=True):
                lines = [json.dumps(record_row(row, a), ensure_ascii=False) for a in several]
                file.write("\n".join(lines) + "\n")
                file.flush()
        part.replace(path)
    return _counted(path, config.samples)


def _whole_questions(part: Path, samples: int) -> int:
    """How many questions have all their samples there; what stands behind them is cut off."""
    if not part.exists():
        return 0
    lines = part.read_bytes().splitlines(keepends=True)
    whole = sum(line.endswith(b"\n") for line in lines) // samples
    with part.open("r+b") as file:
        file.truncate(sum(map(len, lines[: whole * samples])))
    return whole


def _counted(path: Path, samples: int) -> Sampled:
    with reading(path) as file:
        rows = [row for _, row in json_lines(file) if isinstance(row, dict)]
    rewards = np.array([row["reward"] for row in rows], float).reshape(-1, samples)
    lengths = np.array([len(row["ids"]) for row in rows])
    accepted = sum(row["label"] for row in rows)
    return Sampled(
        float(np.nanmean(rewards)),
        float(np.nanmean(np.nanstd(rewards, axis=1))),
        float(np.mean(np.nanstd(rewards, axis=1) == 0)),
        float(lengths.mean()),
        float(np.mean([not row["ended"] for row in rows])),
        len(rows) - accepted,
        accepted,
    )
