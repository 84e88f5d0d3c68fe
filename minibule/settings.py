"""Settings, each said once: the fields of a dataclass are flags, lines of TOML, and checked.

    @dataclass(frozen=True)
    class Tea:
        minutes: float = setting(3.0, "how long it draws", 0, 60)
        kind: Literal["green", "black"] = setting("green", "leaves")

    parser = Parser(prog="tea", description="Make tea.")
    add_flags(parser, Tea)                     # --minutes X  --kind green|black
    tea = from_flags(Tea, vars(parser.parse_args(["--minutes", "4"])))

What a field is annotated with says what it may hold: bool, int, float, str, a Path, a Literal of
texts, one of these or None, or a tuple of texts, which is written with commas between. Everything
else, its default, range and help among it, stands beside the field in `setting`, and nowhere else.
"""

import argparse
import dataclasses
import json
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from minibule.errors import InputError, listed
from minibule.files import reading
from minibule.program import as_typed, spares
from minibule.wording import Number, did_you_mean

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class About:
    """What `setting` says of a field.

    help        one line for --help and for the TOML file
    low, high   the range of a number, both in it, but for `low` where `above` is set; high None:
                no bound
    group       the heading it stands under in --help
    choices     what a text, or each text of a tuple, may be; empty: anything
    required    whether it must be given, whatever its default
    may_change  whether a run that goes on may be given another value: see `runs.checkpoint`
    spares      what it is set to where memory is short: "low", "smaller"; empty: it changes nothing
    """

    help: str
    low: float = 0
    high: float | None = None
    above: bool = False
    group: str = "options"
    choices: Sequence[str] = ()
    required: bool = False
    may_change: bool = False
    spares: str = ""


def setting(default: Any, help: str, low: float = 0, high: float | None = None, **more: Any) -> Any:
    """A field of a settings dataclass: its default, and what `About` tells of it."""
    return dataclasses.field(default=default, metadata={"about": About(help, low, high, **more)})


class Setting(NamedTuple):
    """A field of a settings dataclass, its annotation understood.

    kind      bool, int, float, str, Path, or tuple for a list of texts
    choices   what a text may be; empty: anything
    """

    name: str
    kind: type
    default: Any
    choices: tuple[str, ...]
    about: About

    @property
    def flag(self) -> str:
        """ "max_length" -> "--max-length", "n" -> "-n"."""
        return ("--" if len(self.name) > 1 else "-") + self.name.replace("_", "-")

    @property
    def metavar(self) -> str:
        """What stands for the value in --help."""
        if self.kind is str and self.choices:
            return "|".join(self.choices)
        return {int: "N", float: "X", Path: "PATH"}.get(self.kind, "TEXT")

    def convert(self, value: Any, is_text: bool) -> Any:
        """`value` as the field holds it; ValueError says what was expected.

        is_text: it comes from a command line, where numbers and lists are texts too.
        """
        if self.kind is tuple:
            names = value.split(",") if isinstance(value, str) else value
            if (
                not isinstance(names, list)
                or not names
                or any(n not in self.choices for n in names)
            ):
                raise ValueError(f"expected some of {','.join(self.choices)}")
            return tuple(dict.fromkeys(names))
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"expected one of {', '.join(self.choices)}")
            return value
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError("expected true or false")
            return value
        if self.kind is Path:  # any that the system can name, UTF-8 or not
            if not isinstance(value, str) or (self.about.required and not value):
                raise ValueError("expected a path")
            return Path(value) if value else None
        if self.kind is str:
            if not isinstance(value, str):
                raise ValueError("expected a text")
            _check_utf8(value)
            return value
        number = Number(self.kind, self.about.low, self.about.high, self.about.above)
        try:
            if is_text and not isinstance(value, str):
                raise ValueError
            # A whole number where any is expected may have more digits than a float can hold.
            read = self.kind(value) if is_text or type(value) is int else value
        except (ValueError, OverflowError):
            raise ValueError(f"expected {number}") from None
        return number.check(read)


@cache
def settings_of(cls: type) -> Mapping[str, Setting]:
    """Name -> setting, in the order of the fields of a settings dataclass."""
    hints = get_type_hints(cls)
    settings = {}
    for field in dataclasses.fields(cls):
        about: About = field.metadata["about"]
        kinds = [kind for kind in _parts(hints[field.name]) if kind is not type(None)]
        texts = tuple(kind for kind in kinds if isinstance(kind, str))  # of a Literal
        kind = str if texts else get_origin(kinds[0]) or kinds[0]
        choices = texts or tuple(about.choices)
        settings[field.name] = Setting(field.name, kind, field.default, choices, about)
    return settings


def check_kept(file: Path, there: object, now: Mapping[str, Any]) -> None:
    """InputError that lists what is given now other than in the settings `there`, read in `file`.

    Of a run that goes on: what it may be given otherwise is not looked at.
    """
    kind: type = type(there)
    differences = [
        f"{name}: {getattr(there, name)!r} there, {now[name]!r} now"
        for name, setting in settings_of(kind).items()
        if name in now and not setting.about.may_change and now[name] != getattr(there, name)
    ]
    if differences:
        raise InputError(
            f"--resume goes on with the settings in {file}. Leave these out, or begin anew in "
            f"another --output:\n{listed(differences)}"
        )


def _parts(hint: Any) -> list[Any]:
    """The types of a union and the texts of a Literal, in one list."""
    if not get_args(hint) or get_origin(hint) is tuple:
        return [hint]
    return [part for inner in get_args(hint) for part in _parts(inner)]


# -- the command line ------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A command line's flags. What is wrong with them is an InputError, as all bad input is.

    examples    arguments that the command may be given, shown at the end of --help
    """

    def __init__(self, *, prog: str, examples: Sequence[str] = (), **more: Any) -> None:
        super().__init__(prog=as_typed(prog), **more)
        self.examples = examples

    def format_help(self) -> str:
        lines = [f"  {self.prog} {words}".rstrip() + "\n" for words in self.examples]
        return "".join([super().format_help(), *(["\nexamples:\n"] if lines else []), *lines])

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\n`{self.prog} --help` lists the flags.")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but that an unknown flag is named with the one that may be meant."""
        namespace, unknown = self.parse_known_args(args, namespace)
        flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
        known = [flag for action in self._actions for flag in action.option_strings]
        if flags:
            self.error("\n".join(f"{f}: no such flag{did_you_mean(f, known)}" for f in flags))
        if unknown:
            self.error(f"found {' '.join(unknown)!r}, expected flags only")
        spares[:] = [action.spares for action in self._actions if hasattr(action, "spares")]
        return namespace


def add_flags(
    parser: argparse.ArgumentParser,
    cls: type,
    names: Iterable[str] | None = None,
    defaults: Mapping[str, str] | None = None,
    groups: Sequence[str] = (),
) -> dict[str, argparse._ArgumentGroup]:
    """Give `parser` a flag for each setting of a dataclass; returns the headings they stand under.

    names      only these settings; None: all
    defaults   what is shown as the default of a setting, where it is not simply the field's
    groups     the order of the headings; those that are not named come after
    """
    known = settings_of(cls)
    wanted = [known[name] for name in (known if names is None else names)]
    used = [s.about.group for s in wanted]
    order = [*(g for g in groups if g in used), *(g for g in used if g not in groups)]
    headings = {title: parser.add_argument_group(title) for title in dict.fromkeys(order)}
    for one in wanted:
        text = one.about.help
        default = (defaults or {}).get(one.name) or _default_shown(one)
        text += f" (default: {default})" if default else ""
        more: dict[str, Any] = {"metavar": one.metavar}
        if one.kind is bool:
            more = {"action": argparse.BooleanOptionalAction, "default": None}
        heading = headings[one.about.group]
        action = heading.add_argument(one.flag, help=text.replace("%", "%%"), **more)
        if one.about.spares:
            action.spares = f"{one.flag} {one.about.spares}"  # type: ignore[attr-defined]
    return headings


def _default_shown(one: Setting) -> str:
    hidden = one.about.required or one.default in (None, "") or one.default is False
    if one.default == one.choices:
        return "all"
    return "" if hidden else show(one.default)


def from_flags(cls: type[T], arguments: Mapping[str, Any]) -> T:
    """The settings that flags give (None = not given) and, of the rest, the defaults.

    Raises InputError naming every value that cannot be used at once.
    """
    return cls(**checked(cls, [flags_given(cls, arguments)]))


# -- where values come from ------------------------------------------------------------------------


class Source(NamedTuple):
    """Settings from one place; `is_text`: a command line, where numbers and lists are texts."""

    name: str
    values: Mapping[str, Any]
    is_text: bool


def flags_given(cls: type, arguments: Mapping[str, Any]) -> Source:
    """The settings among a command line's arguments that are given, and not None."""
    given = {name: arguments[name] for name in settings_of(cls) if arguments.get(name) is not None}
    return Source("command line", given, True)


def checked(cls: type, sources: Iterable[Source]) -> dict[str, Any]:
    """Name -> value of every setting that is given; a later source wins over an earlier one.

    Raises InputError naming at once every unknown name, every value that cannot be used, and
    every setting that must be given and is not.
    """
    known = settings_of(cls)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for source in sources:
        for name, value in source.values.items():
            if name not in known:
                meant = did_you_mean(name, known)
                problems.append(f"{show(name)} ({source.name}): no such setting{meant}")
                continue
            try:
                values[name] = known[name].convert(value, source.is_text)
            except ValueError as error:
                problems.append(f"{name} = {show(value)} ({source.name}): {error}")
                values[name] = None  # it is given, and named above
    problems += [
        f"{one.flag}: not given, expected {one.about.help}"
        for one in known.values()
        if one.about.required and one.name not in values
    ]
    if problems:
        raise InputError("settings that cannot be used:\n" + listed(problems))
    return values


def _check_utf8(value: str) -> None:
    """ValueError for half characters, as a command line or file name that is not UTF-8 has them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected UTF-8 text") from None


def show(value: Any) -> str:
    """A value for people: lists with commas, and nothing longer than a line."""
    if isinstance(value, tuple):
        return ",".join(value)
    return value if isinstance(value, str) and len(value) <= 40 else reprlib.repr(value)


# -- TOML ------------------------------------------------------------------------------------------


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file, "max-length" and "max_length" being one name, not yet checked.

    Raises InputError if the file cannot be read, or names a setting both ways.
    """
    try:
        with reading(path) as file:
            table = tomllib.load(file)
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, too many digits, too deep
        raise InputError(f"{path}: not a TOML file ({error}).") from None
    settings = {name.replace("-", "_"): value for name, value in table.items()}
    if len(settings) < len(table):
        twice = next(name for name in table if "-" in name and name.replace("-", "_") in table)
        raise InputError(f"{path}: {twice} stands there twice, once with _ for -; expected once.")
    return settings


def to_toml(settings: Any) -> str:
    """The settings as a TOML file, each with its help above it, that reads back as the same.

    Raises InputError for a text that no file can hold.
    """
    lines = []
    cls: type = type(settings)
    for name, one in settings_of(cls).items():
        value = getattr(settings, name)
        try:
            _check_utf8(value if isinstance(value, str) else "")
        except ValueError as error:
            raise InputError(f"{name} = {show(value)}: {error}.") from None
        shown = "" if value is None else f"{name} = {_toml_value(value)}\n"
        lines.append(f"# {one.about.help}\n{shown}")
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # JSON's texts, numbers and booleans are TOML's too (DEL alone is escaped there and not here).
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
