"""How to damage bytes and texts: each way is drawn from a generator, and takes and gives bytes."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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


COMMANDS = "\x1b]52;c;eA==\x07\x1b[2J\x9b1m\r\u202e"  # to a terminal: none must ever reach one

SCRAPS = [
    COMMANDS.encode(),
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
    COMMANDS,
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


INSERTED = [COMMANDS, "\ud800", "\0", "<|im_start|>", "\n\nHuman:", "\u2028", " ", "/", "9"]
KEYS = ["", COMMANDS, "\ud800", "label", "a" * 9999, "..", "format"]


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
        scrap = rng.choice(INSERTED)
        put(container, i, old[:cut] + scrap + old[cut:])
    elif type(container) is Pairs:
        container[i] = (rng.choice(KEYS), old)
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
    '"\\u001b[2J"',
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
    f"raise_exception({json.dumps(COMMANDS)})",
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
