"""The building blocks of the report's page: its frame and style, texts, tables, code.

Everything that comes from data passes through `text`, which leaves nothing of it that a browser
could take for markup.
"""

import html
import shlex
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfbf9; --raised: #ffffff; --ink: #1e2328; --muted: #5c646d; --line: #dedbd4;
  --blue: #2b62a8; --orange: #b8540f; --green: #22744a; --red: #a82a2a; --grey: #a3a8ae;
  --sans: system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif;
  --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, "DejaVu Serif", Georgia, serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --raised: #1c2024; --ink: #e5e6e4; --muted: #a0a8b0; --line: #343a40;
    --blue: #79aef0; --orange: #ee9a57; --green: #72c699; --red: #f08a84; --grey: #6d757d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 76rem; padding: 0 clamp(1rem, 4vw, 3rem) 4rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.55 var(--sans);
  -webkit-text-size-adjust: 100%;
}
h1, h2, .lead { font-family: var(--serif); text-wrap: balance; }
h1 { font-size: clamp(2rem, 6vw, 3rem); line-height: 1.1; margin: 0 0 1rem; font-weight: 600;
  overflow-wrap: anywhere; }
h2 { font-size: 1.55rem; line-height: 1.2; margin: 4rem 0 .5rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line); font-weight: 600; }
h3 { font-size: 1rem; margin: 0; font-weight: 600; }
p { margin: .5rem 0; max-width: 44rem; text-wrap: pretty; }
header { padding-top: clamp(2rem, 7vw, 4.5rem); }
.kicker { color: var(--muted); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase;
  margin: 0 0 .75rem; }
.lead { font-size: clamp(1.15rem, 3vw, 1.4rem); line-height: 1.45; max-width: 46rem; }
.muted, figcaption, caption, .gloss { color: var(--muted); }
.notice { border-left: 3px solid var(--orange); padding: .3rem 0 .3rem 1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  gap: 1.1rem 2rem; margin: 2rem 0 0; }
dt { color: var(--muted); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; gap: 2rem 3rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.charts { display: grid; gap: 0 2rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 19.5rem), 1fr)); }
.columns > *, .charts > * { min-width: 0; }
figure { margin: 0; }
.charts figure { display: grid; grid-row: span 4; grid-template-rows: subgrid; row-gap: 0; }
.columns figure { max-width: 31rem; }
figcaption { font-size: .85rem; line-height: 1.45; }
.charts figcaption { margin-bottom: 2.25rem; }
figure svg { display: block; width: 100%; height: auto; margin: .4rem 0 .25rem; overflow: hidden;
  stroke-linejoin: round; font-family: var(--sans); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .8rem; color: var(--muted); }
.legend span { white-space: nowrap; }
.key { display: inline-block; width: 1.1em; height: .2em; margin-right: .4em; vertical-align: .22em;
  border-radius: 1em; }
.key.bar { height: .75em; vertical-align: -.05em; border-radius: 1px; }
.key.dashed { height: 0; border-top: .12em dashed var(--ink); border-radius: 0; opacity: .7; }
.key.upright { width: .2em; height: 1em; vertical-align: -.12em; border-radius: 0; }
.key.diamond { width: .55em; height: .55em; transform: rotate(45deg); border-radius: 0;
  vertical-align: .05em; margin-right: .6em; }
.blue { background: var(--blue); } .orange { background: var(--orange); }
.green { background: var(--green); } .grey { background: var(--grey); }
.scroll { overflow: auto; max-width: 100%; }
.scroll.tall { max-height: 32rem; border: 1px solid var(--line); border-radius: .4rem;
  background: var(--raised); margin-top: 1rem; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 3px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; line-height: 1.4; }
caption { text-align: left; padding: 0 0 .4rem; font-size: .85rem; }
th, td { padding: .42rem .75rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
.tall th:first-child, .tall td:first-child { padding-left: .9rem; }
th { font-weight: 500; }
thead th { color: var(--muted); font-size: .8rem; white-space: nowrap; vertical-align: bottom; }
.tall thead th { position: sticky; top: 0; background: var(--raised); }
tbody tr:last-child > * { border-bottom: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.gloss { display: block; font-size: .8rem; font-weight: 400; }
.texts { min-width: 22rem; table-layout: fixed; }
th code { white-space: nowrap; }
.texts td, .texts th { overflow-wrap: anywhere; }
.tag { display: block; font-size: .75rem; color: var(--muted); }
.tag.good { color: var(--green); } .tag.bad { color: var(--red); }
.spark { font-family: var(--mono); letter-spacing: 0; color: var(--blue); white-space: nowrap; }
.probe { margin: 1.5rem 0 2.5rem; max-width: 46rem; }
.probe div { display: grid; grid-template-columns: 5rem 1fr; gap: 0 1rem; padding: .55rem 0;
  border-bottom: 1px solid var(--line); }
.probe dd { font-family: var(--serif); font-size: 1.15rem; white-space: pre-wrap; }
.probe dt { padding-top: .3rem; }
.probe dl { display: block; margin: 0; }
.probe .now dd { color: var(--blue); }
pre { margin: .4rem 0 1.5rem; padding: .8rem 1rem; background: var(--raised); font: .85rem/1.5 var(--mono);
  border: 1px solid var(--line); border-radius: .4rem; overflow: auto; max-height: 32rem; tab-size: 4; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; }
pre.context { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem; }
code { font-family: var(--mono); font-size: .88em; overflow-wrap: anywhere; }
th code { font-size: 1em; }
pre code { font-size: inherit; overflow-wrap: inherit; }
@media (max-width: 30rem) { th, td { padding: .4rem .5rem; } .tall th:first-child { padding-left: .6rem; } }
details { margin: 0; } summary { cursor: pointer; }
@media print { .scroll, pre { max-height: none !important; } h2 { break-after: avoid; } }
"""  # noqa: E501

# Nothing is loaded from anywhere and nothing runs, whatever the data hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

# Control characters, as the pictures Unicode has for them; line ends and tabs stay.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


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


def scrolling(label: str, inside: str, tall: bool = False) -> str:
    """A region that scrolls within itself, never the page sideways."""
    kind = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{kind}" role="region" tabindex="0" aria-label="{text(label)}">{inside}</div>'
    )


def code(content: str, kind: str = "") -> str:
    """Preformatted text, reachable by keyboard; a `command` is marked as a whole by one click."""
    shown = f' class="{kind}"' if kind else ""
    return f'<pre{shown} tabindex="0"><code>{text(content)}</code></pre>'


def command(module: str, *arguments: str) -> str:
    """`python -m module arguments`, quoted for the shell."""
    return shlex.join(["python", "-m", module, *arguments])
