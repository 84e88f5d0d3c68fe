"""Damage every kind of file that minibule reads, and see that none of them gets the better of it.

    python tools/mutate.py [--seed S] [--kind KIND --case N]

Each case takes a good file, damages it in a way drawn from the seed, and reads it as the commands
do. It must end in one of two ways: *loaded*, and what was loaded works (a model's logits are finite
and of the right shape, records become tokens), or *refused* with an InputError. Anything else is a
failure: another exception, a crash, a number that is not finite, more than 5 seconds, or more
memory than twice the file and a constant. With --kind and --case one case is run by itself, and
its traceback shown.

The cases run in a process of their own, which is replaced when it dies, so that a crash in a
native library is one more failure and has a case it belongs to. Memory is what Linux counts as the
peak of resident memory, set back before every case.
"""

import argparse
import contextlib
import copy
import gzip
import json
import multiprocessing
import os
import random
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.core.lora import init_adapter
from minibule.core.shapes import PROJECTIONS, LlamaConfig, LoraConfig, module_names
from minibule.errors import InputError
from minibule.evaluate.questions import ask, read_questions
from minibule.files import embedded_folder, write_json
from minibule.models import gguf_file
from minibule.models.chat_files import load_chat
from minibule.models.gguf_write import export_gguf
from minibule.models.huggingface import COMPANIONS, config_json
from minibule.models.load import load_model
from minibule.models.peft import save_adapter
from minibule.models.save import save_weights
from minibule.program import run
from minibule.records.records import read_records
from minibule.runs.settings import read_settings, resolve
from minibule.settings import to_toml
from minibule.text.chat import CHATML, Chat
from minibule.text.examples import tokenize

SECONDS = 5.0
# What a case may take beside twice its file: the libraries' own buffers, above all the JSON of a
# tokenizer, numbers of the rendering and of the forward pass; the good files take up to 9 MB.
CONSTANT = 32_000_000
ADDRESS_SPACE = 4_000_000_000  # beyond what a worker has at its start: a net under the measurement

CONFIG = LlamaConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    vocab_size=512,  # the embedded tokenizer's
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)

# -- how to damage bytes ---------------------------------------------------------------------------

Damage = Callable[[random.Random, bytes], bytes]


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flips, cuts, insertions, repetitions, another encoding."""
    at = rng.randrange(len(data) + 1)
    length = min(rng.choice([1, 1, 2, 8, 64, 1000]), len(data) - at)
    part = data[at : at + length]
    flipped = bytes(b ^ (1 << rng.randrange(8)) for b in part)
    return rng.choice(
        [
            lambda: data[:at] + flipped + data[at + length :],
            lambda: data[:at] + flipped[:1] + data[at + 1 :],
            lambda: data[:at] + rng.randbytes(length) + data[at + length :],
            lambda: data[:at] + bytes(length) + data[at + length :],
            lambda: data[:at] + data[at + length :],
            lambda: data[:at] + rng.randbytes(length) + data[at:],
            lambda: data[:at] + part * rng.choice([2, 3, 50]) + data[at + length :],
            lambda: data[:at] + rng.choice(SCRAPS) + data[at:],
            lambda: data[:at],
            lambda: data[at:],
            lambda: data * 2,
            lambda: b"",
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-be"])),
        ]
    )()


SCRAPS = [
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",  # a lone surrogate, as it must not be in UTF-8
    b"\xef\xbb\xbf",
    b"\\ud800",
    b'"',
    b"\\",
    b"{}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5000,
    b"\n\n",
    b"\r",
    "\u2028\U0001f642".encode(),
]

# -- how to damage JSON ----------------------------------------------------------------------------

# What a value is replaced by. A Raw stands in the file as it is.


class Raw(NamedTuple):
    text: str


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    0.5,
    1e-300,
    1e300,
    2**31,
    2**60,
    -(2**63),
    10**400,
    float("nan"),
    float("inf"),
    Raw("1e999"),
    Raw("9" * 5000),
    Raw("[" * 100_000),
    Raw("[" * 100_000 + "]" * 100_000),
    Raw('{"a":' * 900 + "1" + "}" * 900),
    Raw('"\\ud83d\\ude42"'),
    "",
    " ",
    "a",
    "\ud800",
    "\udc00x",
    "\0",
    "\ufeff",
    "../../../../etc/passwd",
    "/etc/passwd",
    "..",
    "C:\\Windows\\win.ini",
    "a\0b",
    "<|im_end|>",
    "\U0001f642" * 50,
    "x" * 100_000,
    "".join(map(chr, range(0xE000, 0xF900))),
    [],
    {},
    [None],
    [[]],
    [1, "a", {}],
    {"": {}},
    {"a": [None]},
]


class Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, so that it can hold a key twice."""


def parsed(text: str | bytes) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def unparsed(value: Any, ascii_only: bool) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, Pairs):
        pairs = (f"{json.dumps(k)}: {unparsed(v, ascii_only)}" for k, v in value)
        return "{" + ", ".join(pairs) + "}"
    if type(value) is list:
        return "[" + ", ".join(unparsed(item, ascii_only) for item in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**300:
        return "1" + "0" * 400  # str() has a limit for which this is not the place
    return json.dumps(value, ensure_ascii=ascii_only)


def places(value: Any) -> Iterator[tuple[list[Any], int]]:
    """Every (container, index) below a parsed value; an object's index is that of its pair."""
    if isinstance(value, list) and not isinstance(value, Raw):
        for i, item in enumerate(value):
            yield value, i
            yield from places(item[1] if isinstance(value, Pairs) else item)


def get(container: list[Any], i: int) -> Any:
    return container[i][1] if isinstance(container, Pairs) else container[i]


def put(container: list[Any], i: int, value: Any) -> None:
    container[i] = (container[i][0], value) if isinstance(container, Pairs) else value


def another_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))  # it may be damaged in its turn


def damage_value(rng: random.Random, value: Any, limit: int = 400) -> Any:
    """Change something in a parsed JSON value, in place; big files mostly near their top."""
    all_places = [place for place, _ in zip(places(value), range(limit), strict=False)]
    if not all_places:
        return another_value(rng)
    container, i = rng.choice(all_places)
    old = get(container, i)
    way = rng.randrange(8)
    if way <= 3:
        put(container, i, another_value(rng))
    elif way == 4:
        del container[i]
    elif way == 5:  # a key twice, or an item
        again = copy.deepcopy(old) if rng.random() < 0.3 else another_value(rng)
        twice = (container[i][0], again) if type(container) is Pairs else copy.deepcopy(old)
        container.insert(rng.randrange(len(container) + 1), twice)
    elif way == 6:
        other, j = rng.choice(all_places)
        if j < len(other):
            there = get(other, j)
            if not (isinstance(there, list) and isinstance(old, list)):  # no knots
                inside = {id(c) for c, _ in places([there, old])}
                if id(container) not in inside and id(other) not in inside:
                    put(other, j, old)
                    put(container, i, there)
    elif isinstance(old, str):
        cut = rng.randrange(len(old) + 1)
        scrap = rng.choice(["\ud800", "\0", "<|im_start|>", "\n\nHuman:", "\u2028", " ", "/", "9"])
        put(container, i, old[:cut] + scrap + old[cut:])
    elif type(container) is Pairs:
        container[i] = (rng.choice(["", "\ud800", "label", "a" * 9999, "..", "format"]), old)
    else:
        put(container, i, [old])
    return value


def damaged_json(rng: random.Random, data: bytes) -> bytes:
    """A JSON text with values of another kind, or with damaged bytes."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, data)
    value = parsed(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        value = damage_value(rng, value)
    text = unparsed(value, ascii_only=True)
    return text.encode()


def damaged_lines(rng: random.Random, data: bytes) -> bytes:
    """JSON lines, one of them damaged."""
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    lines[i] = damaged_json(rng, lines[i])
    return b"\n".join(lines)


# -- how to damage what is binary ------------------------------------------------------------------

LENGTHS = [0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]


def damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The length, the header (types, shapes, offsets that lie or overlap), or the numbers."""
    n = int.from_bytes(data[:8], "little")
    header, numbers = data[8 : 8 + n], data[8 + n :]
    way = rng.randrange(10)
    if way == 0:
        return struct.pack("<Q", rng.choice([*LENGTHS, n - 1, n + 1, len(data)])) + data[8:]
    if way == 1:
        return damaged_bytes(rng, data)
    if way == 2:
        return data[: 8 + n] + damaged_bytes(rng, numbers)
    if way == 3:
        header = damaged_bytes(rng, header)
    elif way == 4:
        header = damaged_json(rng, header)
    else:
        value = parsed(header)
        tensors = [entry for name, entry in value if name != "__metadata__"]
        one, two = rng.sample(tensors, 2)
        fields, others = dict(one), dict(two)
        start, end = fields["data_offsets"]
        change = rng.choice(
            [
                {"data_offsets": others["data_offsets"]},
                {"data_offsets": [start, end + rng.choice(LENGTHS)]},
                {"data_offsets": [rng.choice(LENGTHS), rng.choice(LENGTHS)]},
                {"data_offsets": [end, start]},
                {"data_offsets": [start + 1, end + 1]},
                {"shape": others["shape"]},
                {"shape": fields["shape"][::-1]},
                {"shape": [*fields["shape"], 1]},
                {"shape": []},
                {"shape": [0, *fields["shape"]]},
                {"shape": [rng.choice(LENGTHS), rng.choice(LENGTHS)]},
                {
                    "dtype": rng.choice(
                        ["F64", "F32", "F16", "BF16", "I8", "U16", "BOOL", "F8_E4M3"]
                    )
                },
                {"dtype": rng.choice(["F4", "C64", "X", "", "f32"])},
            ]
        )
        if rng.random() < 0.2:  # two tensors change places
            one[:], two[:] = list(two), list(one)
        else:
            one[:] = list((fields | change).items())
        header = unparsed(value, ascii_only=True).encode()
    if rng.random() < 0.1:
        numbers += bytes(20_000_000)
    return struct.pack("<Q", len(header)) + header + numbers


class _Watched(gguf_file._Cursor):
    """Notes where each number of a GGUF header stands and how it is coded."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.fields: list[tuple[int, str]] = []

    def numbers(self, code: str, n: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}")
        self.fields += [(self.at + i * size, code) for i in range(min(n, 4))]
        return super().numbers(code, n)


def damaged_gguf(rng: random.Random, data: bytes) -> bytes:
    """A number of the header (a length, a type, an offset, a value), or any bytes."""
    cursor = _Watched(np.frombuffer(data, np.uint8))
    gguf_file._parse(Path(), cursor)
    way = rng.randrange(10)
    if way <= 1:
        return damaged_bytes(rng, data)
    if way == 2:
        return damaged_bytes(rng, data[: cursor.at]) + data[cursor.at :]
    if way == 3:
        return data[: cursor.at] + damaged_bytes(rng, data[cursor.at :])
    damaged = bytearray(data)
    # The tokens' and merges' lengths are most of the header; the others must not drown in them.
    first, last = cursor.fields[:150], cursor.fields[-150:]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, code = rng.choice(rng.choice([first, last, cursor.fields]))
        size = struct.calcsize(f"<{code}")
        if rng.random() < 0.3:
            other, _ = rng.choice(cursor.fields)
            damaged[at : at + size] = data[other : other + size]
        else:
            value = rng.choice(LENGTHS + list(range(20)))
            damaged[at : at + size] = value.to_bytes(8, "little")[:size]
    if rng.random() < 0.1:
        damaged += bytes(20_000_000)
    return bytes(damaged)


# -- how to damage other texts ---------------------------------------------------------------------

TOML_VALUES = [
    "true",
    "-1",
    "0",
    "0.5",
    "nan",
    "-inf",
    "1e999",
    "9" * 5000,
    "1" + "0" * 400,
    str(2**60),
    '""',
    '"\\ud800"',
    '"\\u0000"',
    '"x"',
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "[]",
    "[[]]",
    '["q_proj", 1]',
    '["q_proj", []]',
    "{}",
    "{a = {b = 1}}",
    "[" * 100_000,
    "{a=" * 5000,
    '"""',
]


def damaged_toml(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.25:
        return damaged_bytes(rng, data)
    lines = data.decode().splitlines()
    settings = [i for i, line in enumerate(lines) if " = " in line]
    for _ in range(rng.choice([1, 1, 2, 4])):
        i = rng.choice(settings)
        name, _, _ = lines[i].partition(" = ")
        value = rng.choice(TOML_VALUES)
        lines[i] = rng.choice(
            [
                f"{name} = {value}",
                f"{name} = {value}",
                f"{name} = {value}",
                f"preset = {value}",
                f"{lines[i]}\n{lines[i]}",
                f"{lines[i]}\n{name.replace('_', '-')} = {value}",
                f"[{name}]\na = {value}",
                f"[[{name}]]",
                f"{name}.a = {value}",
                f'"" = {value}',
                f'"{name}\\n" = {value}',
            ]
        )
    return "\n".join(lines).encode()


# A template's author may write anything. These want time, memory or a way out.
TEMPLATES = [
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    '{{ "a" * 10**10 }}',
    '{{ "%01000000000d" % 1 }}',
    '{{ "{:1000000000}".format(1) }}',
    '{{ "a".center(10**10) }}',
    '{{ "a"|center(10**10) }}',
    "{{ 10 ** (10 ** 10) }}",
    "{{ lipsum(n=10**9) }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}"
    "{% endfor %}{{ ns.x }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ [0] * 10**10 }}",
    "{{ range(99999)|list|string * 10 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ '\ud800' }}",
    "{{ '\\ud800' }}",
    "{{ '\x00' }}",
    "{{ messages }}",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if a %}" * 300 + "{% endif %}" * 300,
    "{% include 'x' %}",
    "{% extends '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{{ messages[0]['content'] }}" * 5,
    "{{ bos_token }}{{ messages[0]['content'] * 3000 }}",
    "{{ self }}{{ cycler }}{{ joiner }}{{ dict }}",
    "",
    " ",
]
PIECES = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "| trim",
    "| tojson",
    "| join",
    " + ",
    " * 99 ",
    "'",
    "message",
    "messages",
    "['content']",
    "['nothing']",
    "[99]",
    "loop.index",
    "not ",
    "raise_exception('x')",
    "<|im_end|>",
    "strftime_now('%Y')",
]


def damaged_template(rng: random.Random, data: bytes) -> bytes:
    text = data.decode()
    way = rng.randrange(20)
    if way == 0:
        return rng.choice(TEMPLATES).encode("utf-8", "surrogatepass")
    if way <= 5:
        return damaged_bytes(rng, data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, end = rng.randrange(len(text) + 1), rng.randrange(12)
        text = text[:at] + rng.choice([*PIECES, ""]) + text[at + end :]
    return text.encode()


# -- records ---------------------------------------------------------------------------------------


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
    shared = Path(os.environ.get("MINIBULE_SHARED", Path(__file__).parents[2] / "shared"))
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


# -- what becomes of the files ---------------------------------------------------------------------

CONTENT = "hello <|im_end|>\n<|im_start|>assistant\n \U0001f642"


def check(fine: bool, what: str) -> None:
    """Raise what counts as a failure: it was neither refused nor loaded well."""
    if not fine:
        raise AssertionError(what)


def use_model(path: Path) -> None:
    model = load_model(path)
    logits = model.logits([1, 2, 3])
    check(logits.shape == (3, model.config.vocab_size), f"logits of shape {logits.shape}")
    check(bool(np.isfinite(logits).all()), "logits that are not finite")


def use_chat(path: Path) -> None:
    chat = load_chat(path)
    encoded = [chat.encode_prompt(CONTENT), *chat.encode_answers([CONTENT, "", "x"])]
    encoded.append(chat.encode_raw(CONTENT))
    check(len(encoded[0]) > 0, "a prompt without a token")
    for ids in [*encoded, np.array([*chat.stop, chat.end_of_turn])]:
        check(ids.dtype == np.int64 and bool((ids >= 0).all()), f"ids {ids}")
        check(bool((ids < CONFIG.vocab_size).all()), f"ids beyond the vocabulary: {ids}")
        chat.decode(ids)


def use_folder(folder: Path) -> None:
    use_model(folder)
    use_chat(folder)


def use_adapter(folder: Path) -> None:
    model = load_model(folder.parent / "model", folder)
    check(bool(np.isfinite(model.logits([1, 2, 3])).all()), "logits that are not finite")


def use_records(path: Path, chat: Chat) -> None:
    examples = tokenize(read_records(path), chat, 1024, skip_long=True)
    if not examples:
        raise InputError("no record is left to train on")
    control = list(chat.special_ids.values())
    for example in examples:
        # ChatML opens a turn for each message and the answer, and closes all but the answer's.
        starts, ends = (int((example.prompt == i).sum()) for i in (1, 2))
        check(starts == ends + 1, "special-token text of a message became a token")
        check(not any(np.isin(ids, control).any() for ids in example.answers), "so of an answer")
        check(all(len(ids) and ids.max() < CONFIG.vocab_size for ids in example.answers), "ids")
    check(all(len(batch.ids) for batch in pack(examples[:2], "prefix", 512)), "an empty batch")


def use_heldout(path: Path, model: Llama, chat: Chat) -> None:
    answers = ask(model, chat, read_questions(path)[:2], 512)
    check(abs(sum(answers.exact.values()) - 1) < 1e-3, f"probabilities {answers.exact}")
    check(abs(sum(answers.greedy.values()) - 1) < 1e-3, f"shares {answers.greedy}")
    check(bool(np.isfinite(answers.perplexity)), "a perplexity that is not finite")


def use_toml(path: Path) -> None:
    config = read_settings(path)
    again = path.with_name("again.toml")
    again.write_text(to_toml(config), encoding="utf-8")
    check(read_settings(again) == config, "settings that are not read back alike")


# -- the good files --------------------------------------------------------------------------------


def random_model() -> Llama:
    rng = np.random.default_rng(0)
    shapes = CONFIG.tensor_shapes()
    weights = {n: rng.normal(len(s) == 1, 0.2, s).astype(np.float32) for n, s in shapes.items()}
    return Llama(CONFIG, weights)


def make_good_files(folder: Path) -> None:
    """A model in every form, an adapter, records, questions, settings: all small and all good."""
    model = random_model()
    source = embedded_folder()
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    for name, dtype in (("model", "BF16"), ("f32", "F32"), ("sharded", "F16"), ("template", "F16")):
        (folder / name).mkdir()
        for companion in COMPANIONS:
            if (source / companion).exists():
                (folder / name / companion).write_bytes((source / companion).read_bytes())
        write_json(folder / name / "config.json", config_json(CONFIG, dtype) | tokens)
        save_weights(model, folder / name, dtype)
    split_in_two(folder / "sharded")
    (folder / "template" / "chat_template.jinja").write_text("{# another #}" + CHATML)

    lora = LoraConfig(4, 8.0, module_names(range(2), PROJECTIONS), use_rslora=False)
    adapter = init_adapter(lora, CONFIG, seed=0)
    rng = np.random.default_rng(1)
    for name, p in adapter.params.items():
        if ".lora_B." in name:
            p[...] = rng.normal(0, 0.2, p.shape)
    save_adapter(adapter, CONFIG, folder / "adapter", "base")

    chat = load_chat(folder / "model")
    for dtype in ("f32", "bf16", "q8_0", "q4_0"):
        export_gguf(model, chat, folder / f"{dtype}.gguf", dtype)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows())
    for name in ("records.jsonl", "records.json", "records.jsonl.gz"):
        (folder / name).write_text(lines, encoding="utf-8")
    questions = (source / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    (folder / "heldout.jsonl").write_text("\n".join(questions), encoding="utf-8")
    (folder / "config.toml").write_text(to_toml(resolve({"model": "m"})), encoding="utf-8")


def split_in_two(folder: Path) -> None:
    """model.safetensors of a folder -> two shards and their index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    weight_map = {}
    for k, part in enumerate((names[::2], names[1::2])):
        file = f"model-{k}.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


# -- the cases -------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Which good files are damaged, how, and what is then made of what they lie in."""

    files: tuple[str, ...]
    damage: Damage
    use: Callable[[Path], None]  # of the file, or of the folder where `folder` says so
    folder: bool = True
    cases: int = 1000


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind of file that minibule reads."""

    def read(path: Path) -> None:
        use_records(path, chat)

    chat, model = load_chat(folder / "model"), random_model()
    ggufs = tuple(f"{dtype}.gguf" for dtype in ("f32", "bf16", "q8_0", "q4_0"))
    return {
        "records.jsonl": Kind(("records.jsonl",), damaged_record, read, False, 6000),
        "records.json": Kind(("records.json",), damaged_array, read, False, 2000),
        "records.jsonl.gz": Kind(("records.jsonl.gz",), damaged_gzip, read, False, 2000),
        "heldout": Kind(
            ("heldout.jsonl",), damaged_lines, lambda p: use_heldout(p, model, chat), False
        ),
        "config.toml": Kind(("config.toml",), damaged_toml, use_toml, False),
        "safetensors": Kind(
            ("model/model.safetensors", "f32/model.safetensors"), damaged_safetensors, use_model
        ),
        "shards": Kind(("sharded/model-1.safetensors",), damaged_safetensors, use_model),
        "index": Kind(("sharded/model.safetensors.index.json",), damaged_json, use_model),
        "config.json": Kind(("model/config.json",), damaged_json, use_folder),
        "generation_config": Kind(("model/generation_config.json",), damaged_json, use_chat),
        "tokenizer_config": Kind(("model/tokenizer_config.json",), damaged_json, use_chat),
        "tokenizer": Kind(("model/tokenizer.json",), damaged_json, use_chat),
        "template": Kind(("template/chat_template.jinja",), damaged_template, use_chat),
        "adapter_config": Kind(("adapter/adapter_config.json",), damaged_json, use_adapter),
        "adapter": Kind(("adapter/adapter_model.safetensors",), damaged_safetensors, use_adapter),
        "gguf": Kind(ggufs, damaged_gguf, use_folder, False),
    }


class Outcome(NamedTuple):
    """loaded, refused or failed; seconds; bytes of memory beyond twice the file's."""

    result: str
    seconds: float
    memory: int
    message: str


def run_case(folder: Path, name: str, kind: Kind, seed: int, number: int) -> Outcome:
    """Damage a good file, use it, and put it back."""
    rng = random.Random(f"{seed} {name} {number}")
    path = folder / kind.files[number % len(kind.files)]
    good = path.read_bytes()
    damaged = kind.damage(rng, good)
    path.write_bytes(damaged)
    before = start_of_peak()
    start = time.perf_counter()
    try:
        kind.use(path.parent if kind.folder else path)
        result, message = "loaded", ""
    except InputError as error:
        result, message = "refused", str(error)
    except BaseException as error:  # a panic in Rust is one of these
        if isinstance(error, KeyboardInterrupt):
            raise
        result, message = "failed", traceback.format_exc()
    finally:
        path.write_bytes(good)
    seconds = time.perf_counter() - start
    memory = max(0, memory_of("VmHWM") - before - 2 * len(damaged))
    if result != "failed" and seconds > SECONDS:
        result, message = "failed", f"{seconds:.1f} seconds"
    if result != "failed" and memory > CONSTANT:
        result, message = "failed", f"{memory:,} bytes beyond twice the file's {len(damaged):,}"
    if result == "refused" and (len(message) > 200_000 or not message.strip()):
        result, message = "failed", f"a message of {len(message):,} characters: {message[:300]}"
    return Outcome(result, seconds, memory, message)


def start_of_peak() -> int:
    """Forget the peak of memory so far; the bytes now in memory."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return memory_of("VmRSS")


def memory_of(field: str) -> int:
    """A field of Linux's /proc/self/status, in bytes; 0 on other systems."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def work(pipe: Connection, seed: int, cases: list[tuple[str, int]]) -> None:
    """Run the cases one after the other; send "ready", and then each one's Outcome."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (1, 2):  # what the cases print; a panic writes there what its case says too
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_good_files(folder)
        known = kinds(folder)
        for kind in known.values():  # what is only imported or allocated once is so now
            for file in kind.files:
                path = folder / file
                if "records" not in file:
                    kind.use(path.parent if kind.folder else path)
        limit = memory_of("VmSize") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        pipe.send("ready")
        for name, number in cases:
            try:
                outcome = run_case(folder, name, known[name], seed, number)
            except Exception:
                outcome = Outcome("failed", 0.0, 0, f"this tool: {traceback.format_exc()}")
            pipe.send(outcome)


def run_cases(seed: int, cases: list[tuple[str, int]]) -> Iterator[Outcome]:
    """The outcome of each case, in order; a worker that hangs or dies has failed the one."""
    context = multiprocessing.get_context("spawn")
    done = 0
    while done < len(cases):
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(there, seed, cases[done:]), daemon=True)
        worker.start()
        there.close()
        try:
            if not here.poll(60) or here.recv() != "ready":
                raise InputError("the good files cannot be made or used.")
            while done < len(cases):
                if not here.poll(2 * SECONDS):
                    yield Outcome("failed", 2 * SECONDS, 0, "does not end")
                    done += 1
                    break
                outcome = here.recv()
                done += 1
                yield outcome
        except EOFError:
            worker.join()
            yield Outcome("failed", 0.0, 0, f"the process died: exit code {worker.exitcode}")
            done += 1
        finally:
            worker.kill()
            worker.join()
            here.close()


class Tally(NamedTuple):
    """What became of the cases of one kind."""

    results: Counter[str]
    slowest: float
    memory: int
    failures: list[str]


def mutate(seed: int, counts: dict[str, int]) -> dict[str, Tally]:
    """Run so many cases of each kind."""
    cases = [(name, number) for name, n in counts.items() for number in range(n)]
    outcomes: dict[str, list[tuple[int, Outcome]]] = {name: [] for name in counts}
    for (name, number), outcome in zip(cases, run_cases(seed, cases), strict=True):
        outcomes[name].append((number, outcome))
    return {
        name: Tally(
            Counter(outcome.result for _, outcome in found),
            max(outcome.seconds for _, outcome in found),
            max(outcome.memory for _, outcome in found),
            [f"case {n}: {o.message}" for n, o in found if o.result == "failed"],
        )
        for name, found in outcomes.items()
    }


def case_counts() -> dict[str, int]:
    """Every kind's name and the number of its cases."""
    with tempfile.TemporaryDirectory() as folder:
        make_good_files(Path(folder))
        return {name: kind.cases for name, kind in kinds(Path(folder)).items()}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--kind", nargs="+", help="only these kinds of files")
    parser.add_argument("--case", type=int, metavar="N", help="only this case of that kind")
    parser.add_argument("--cases", type=int, metavar="N", help="so many of each kind")
    args = parser.parse_args(argv)
    known = case_counts()
    chosen = args.kind or list(known)
    if not set(chosen) <= set(known) or (args.case is not None and len(chosen) > 1):
        raise InputError(f"--kind: expected one or, without --case, more of {', '.join(known)}.")
    if args.case is not None:
        with tempfile.TemporaryDirectory() as temporary:
            make_good_files(Path(temporary))
            kind = kinds(Path(temporary))[chosen[0]]
            print(*run_case(Path(temporary), chosen[0], kind, args.seed, args.case), sep="\n")
        return
    counts = {name: args.cases or n for name, n in known.items() if name in chosen}
    print(f"{'kind':18}  cases loaded refused failed  slowest  most memory")
    failures = 0
    for name, n in counts.items():
        tally = mutate(args.seed, {name: n})[name]
        results = tally.results
        print(
            f"{name:18} {n:6,} {results['loaded']:6,} {results['refused']:7,} "
            f"{results['failed']:6,} {tally.slowest:6.2f} s {tally.memory / 1e6:8.1f} MB",
            flush=True,
        )
        for failure in tally.failures[:200]:
            print(f"  {name} {failure}", file=sys.stderr)
        failures += len(tally.failures)
    if failures:
        raise InputError(f"{failures:,} cases failed; --kind KIND --case N repeats one.")


if __name__ == "__main__":
    run(main)
