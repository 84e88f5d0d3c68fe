"""The building blocks of the report's page: its frame and style, texts, tables, code.

Everything that comes from data passes through `text`, which leaves nothing of it that a browser
could take for markup.
"""

import html
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from minibule.files import real_path, whole_file
from minibule.wording import BIDI

PACKAGE = Path(__file__).parents[1]
STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")

TIMES = "\u00d7"  # the multiplication sign

# Nothing is loaded from anywhere and nothing runs, whatever the data hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Control characters, as the pictures Unicode has for them; line ends and tabs stay. Those without a
# picture as escapes, and so those that turn the writing round: a path would show as another one.
_CONTROLS: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    127: 0x2421,
    **{code: f"\\x{code:02x}" for code in range(128, 160)},
    **{code: f"\\u{code:04x}" for code in BIDI},
}


def page(title: str, body: Iterable[str]) -> str:
    """The whole page: `title` is a text, the parts of `body` are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def head(
    kind: str,
    name: str,
    headline: str,
    lead: str,
    more: str,
    picture: str,
    about: Mapping[str, str],
) -> str:
    """The head of a report: what it is of, what came of it in words, beside a picture, and facts.

    `more` and `picture` are HTML, and so are the values of `about`; the others are texts.
    """
    return (
        f'<header>\n<p class="kicker"><span>{text(kind)}</span> {text(name)}</p>\n'
        f'<div class="columns hero"><div><h1>{text(headline)}</h1>\n'
        f'<p class="lead">{text(lead)}</p>\n{more}</div>\n'
        f"{picture}</div>\n{facts(about)}\n</header>"
    )


def write_page(path: Path, content: str) -> None:
    """Write the page, whole or not at all."""
    with whole_file(path) as file:
        # A half character, from a file somebody edited, becomes its number instead of an error.
        file.write_text(content, encoding="utf-8", errors="xmlcharrefreplace")


def text(data: str) -> str:
    """A text from anywhere as HTML that shows just this text."""
    return html.escape(data.translate(_CONTROLS))


def foreign(data: str) -> str:
    """The same for what a model or a user wrote, whose writing direction stays its own."""
    return f"<bdi>{text(data)}</bdi>"


def section(heading: str, *parts: str) -> str:
    """A section under a heading; nothing where all its parts are empty."""
    inside = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{text(heading)}</h2>\n{inside}\n</section>" if inside else ""


def facts(values: Mapping[str, str]) -> str:
    """A list of names and what they are (HTML)."""
    pairs = (f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in values.items())
    return f"<dl>{''.join(pairs)}</dl>"


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    """A table of HTML cells; the first of each row is its header. `numbers`: columns of numbers.

    It scrolls within itself where it is too wide, by keyboard too.
    """

    def cell(tag: str, place: int, content: str, extra: str = "") -> str:
        kind = ' class="number"' if place in numbers else ""
        return f"<{tag}{kind}{extra}>{content}</{tag}>"

    head = "".join(cell("th", i, text(c), ' scope="col"') for i, c in enumerate(columns))
    body = "\n".join(
        "<tr>"
        + cell("th", 0, row[0], ' scope="row"')
        + "".join(cell("td", i, content) for i, content in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    return scrolling(
        caption,
        f"<table>\n<caption>{text(caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>",
    )


def scrolling(label: str, inside: str) -> str:
    """A region that scrolls within itself, never the page sideways."""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{inside}</div>'
    )


def source(folder: Path, *names: str) -> str:
    """Which functions of minibule compute the numbers above: `names` as in `computed_by`."""
    links = ", ".join(computed_by(folder, name) for name in dict.fromkeys(names))
    return f'<p class="source">Computed by {links}</p>'


def computed_by(folder: Path, name: str, words: str = "") -> str:
    """A link from a page in `folder` to a function or class, as "core.optim.learning_rate".

    It leads to the file of the installed package as long as the page stays where it is.
    """
    module, _, function = name.rpartition(".")
    file = f"{module.replace('.', '/')}.py"
    shown = text(words) if words else f"<code>{text(f'{file}: {function}')}</code>"
    try:
        way = Path(os.path.relpath(PACKAGE / file, real_path(folder))).as_posix()
    except ValueError:  # another drive of Windows
        return shown
    kind = "class" if function[0].isupper() else "def"
    return f'<a href="{quote(way)}#:~:text={kind}%20{function}">{shown}</a>'


def code(content: str, kind: str = "") -> str:
    """Preformatted text, reachable by keyboard; a click selects all of a `command`."""
    shown = f' class="{kind}"' if kind else ""
    return f'<pre{shown} tabindex="0"><code>{text(content)}</code></pre>'


def command(module: str, *arguments: str) -> str:
    """`python -m module arguments`, quoted for the shell."""
    return shlex.join(["python", "-m", module, *arguments])
