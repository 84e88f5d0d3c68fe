"""Records of rejected answers: a row of every format, and how to damage them."""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

from mutation.damage import damaged_bytes, damaged_json


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def rows() -> list[dict[str, Any]]:
    """A row of every format, and of the real files where they are at hand."""
    hh = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant:"
    system = {"role": "system", "content": "Be kind."}
    human = [{"from": "human", "value": "Hi"}]
    gpt = {"from": "gpt", "value": "No. \U0001f642"}
    scored = [{"response": f"answer {k}", "overall_score": s} for k, s in enumerate([8.5, 4, 4.0])]
    found: list[dict[str, Any]] = [
        {"prompt": "Hi", "rejected_responses": ["Hi", "No."], "rejection_counts": [3, 1]},
        {"prompt": [system, *turns("Hi")], "rejectedResponses": ["No."], "totalRounds": 3},
        {"prompt": "Hi", "rejected": ["a", "b"], "counts": [2, 5], "total_rounds": 9},
        {"prompt": "Hi", "rejected": ["a", "b"], "rejected_ended": [True, False]}
        | {"accepted_responses": ["c"], "acceptance_counts": [2], "accepted_ended": [False]},
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."},
        {
            "prompt": turns("Hi"),
            "chosen": [{"role": "assistant", "content": "Hello!"}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        {"prompt": "Hi", "chosen": turns("Hi", "Hello!"), "rejected": turns("Hi", "No.")},
        {"chosen": turns("Hi", "a", "Go", "b"), "rejected": turns("Hi", "a", "Go", "No.")},
        {"chosen": f"{hh} Gone.", "rejected": f"{hh} No."},
        {"prompt": "Hi", "completion": "No.", "label": False, "ended": False},
        {"messages": turns("Hi", "No."), "label": False},
        {"conversations": human, "chosen": gpt, "rejected": gpt, "system": "Be kind."},
        {"instruction": "Hi", "completions": scored},
    ]
    shared = Path(os.environ.get("MINIBULE_SHARED", Path(__file__).parents[3] / "shared"))
    for path in sorted((shared / "data" / "rejections").glob("*.json*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if path.suffix == ".json":
            found += json.loads(data)[:20]
        else:
            found += [json.loads(line) for line in data.splitlines()[:20]]
    return found


def damaged_record(rng: random.Random, data: bytes) -> bytes:
    """One of the rows damaged, some with a good one after it."""
    lines = data.splitlines()
    damaged = damaged_json(rng, rng.choice(lines))
    return damaged if rng.random() < 0.7 else damaged + b"\n" + rng.choice(lines)


def damaged_array(rng: random.Random, data: bytes) -> bytes:
    """The same as an array, or the brackets and commas of one damaged."""
    lines = data.splitlines()
    if rng.random() < 0.2:
        return damaged_bytes(rng, b"[" + b", ".join(rng.choices(lines, k=3)) + b"]")
    return b"[" + damaged_json(rng, rng.choice(lines)) + b", " + rng.choice(lines) + b"]"


def damaged_gzip(rng: random.Random, data: bytes) -> bytes:
    """A damaged row within good gzip data, or the reverse."""
    if rng.random() < 0.5:
        return gzip.compress(damaged_record(rng, data), 1)
    return damaged_bytes(rng, gzip.compress(rng.choice(data.splitlines()), 1))
