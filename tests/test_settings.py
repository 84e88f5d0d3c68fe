"""The machinery of settings: a dataclass of any kind becomes flags, TOML and checked values."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from minibule.errors import InputError
from minibule.settings import (
    Parser,
    Source,
    add_flags,
    checked,
    from_flags,
    read_toml,
    setting,
    settings_of,
    to_toml,
)


@dataclass(frozen=True)
class Tea:
    pot: str = setting("", "what it draws in", required=True, group="pot")
    minutes: float = setting(3.0, "how long it draws", 0, 60)
    cups: int = setting(2, "how many; 100 % are served", 1)
    fill: float = setting(1.0, "of a cup", 0, 1, above=True)
    kind: Literal["green", "black"] = setting("green", "leaves", group="leaves")
    scent: Literal["rose"] | None = setting(None, "in it", group="leaves")
    sugar: int | None = setting(None, "lumps", 0)
    with_: tuple[str, ...] = setting(("milk",), "beside it", choices=("milk", "lemon"))
    hot: bool = setting(False, "hot or cold")
    n: int = setting(1, "pots", 1)
    shelf: Path | None = setting(None, "where it stands")


def tea(*argv):
    parser = Parser(prog="tea")
    add_flags(parser, Tea)
    return from_flags(Tea, vars(parser.parse_args(list(argv))))


def fails(*argv):
    with pytest.raises(InputError) as error:
        tea(*argv)
    return str(error.value)


def test_flags_become_values_of_their_types():
    assert tea("--pot", "tin") == Tea(pot="tin")
    given = tea("--pot=tin", "--minutes=4", "--cups", "5", "--with-", "lemon,milk,lemon", "--hot",
                "--scent=rose", "--sugar=0", "-n", "3")  # fmt: skip
    assert given == Tea(
        "tin", 4.0, 5, scent="rose", sugar=0, with_=("lemon", "milk"), hot=True, n=3
    )
    assert type(given.minutes) is float
    assert tea("--pot=tin", "--shelf=\udcff").shelf == Path("\udcff")  # a name that is no text
    assert tea("--pot=tin", "--shelf=").shelf is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--minutes", "60.5"], "minutes = 60.5 (command line): expected a number from 0 to 60"),
        (["--minutes", "-1"], "expected a number from 0 to 60"),
        (["--minutes", "nan"], "expected a number from 0 to 60"),
        (["--cups", "2.5"], "cups = 2.5 (command line): expected a whole number of at least 1"),
        (["--cups", "9" * 30], "expected less than 2^63"),
        (["--fill", "0"], "fill = 0 (command line): expected a number above 0 and at most 1"),
        (["--kind", "red"], "expected one of green, black"),
        (["--scent", "red"], "expected one of rose"),
        (["--with-", "milk,salt"], "expected some of milk,lemon"),
        (["--pot", "\udcff"], "expected UTF-8 text"),
        (["--minute"], "argument --minutes: expected one argument"),
        (["--suger", "1"], "--suger: no such flag; did you mean --sugar?"),
        (["cup"], "found 'cup', expected flags only"),
    ],
)
def test_a_command_line_that_cannot_be_used(argv, says):
    assert says in fails("--pot=tin", *argv)


def test_all_problems_come_at_once():
    message = fails("--cups", "0", "--fill", "2")
    assert len(message.splitlines()) == 4
    assert "--pot: not given, expected what it draws in" in message
    message = fails("--tin", "--can", "--pot=x")
    assert "--tin: no such flag" in message and "--can: no such flag" in message
    assert "`tea --help` lists the flags" in message and "usage" not in message


def test_help_shows_range_free_words_and_defaults():
    parser = Parser(prog="tea")
    add_flags(parser, Tea, defaults={"minutes": "3 or so"}, groups=("leaves", "milk", "pot"))
    shown = re.sub(r"\s+", " ", parser.format_help())
    assert "how long it draws (default: 3 or so)" in shown
    assert "100 % are served (default: 2)" in shown
    assert shown.index("leaves:") < shown.index("pot:") < shown.index("how long")
    assert "milk:" not in shown and "--kind green|black" in shown and "-n N" in shown


def test_only_some_settings():
    parser = Parser(prog="tea")
    add_flags(parser, Tea, ["cups", "kind"])
    assert vars(parser.parse_args([])) == {"cups": None, "kind": None}


def test_toml_reads_back_as_it_was_written(tmp_path):
    path = tmp_path / "tea.toml"
    written = Tea('a "b"', 2.5, with_=("lemon",), hot=True)
    path.write_text(to_toml(written), encoding="utf-8")
    assert Tea(**checked(Tea, [Source("file", read_toml(path), False)])) == written
    assert "# lumps\n" in path.read_text() and "sugar =" not in path.read_text()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"minutes": "4"}, "expected a number"),  # a text is no number, but for a command line
        ({"cups": 2.0}, "expected a whole number"),
        ({"cups": True}, "expected a whole number"),
        ({"minutes": 10**400}, "expected a number"),
        ({"hot": 1}, "expected true or false"),
        ({"pot": 1}, "expected a text"),
        ({"with_": []}, "expected some of"),
        ({"cup": 1}, "cup (file): no such setting; did you mean cups?"),
        ({"zzz": 1}, "zzz (file): no such setting"),
    ],
)
def test_values_of_another_type(values, says):
    with pytest.raises(InputError) as error:
        checked(Tea, [Source("file", {"pot": "tin"} | values, False)])
    assert says in str(error.value)


def test_a_later_source_wins():
    first, second = Source("a", {"pot": "x", "cups": 3}, False), Source("b", {"cups": "4"}, True)
    assert checked(Tea, [first, second]) == {"pot": "x", "cups": 4}
    assert list(settings_of(Tea))[:2] == ["pot", "minutes"]
