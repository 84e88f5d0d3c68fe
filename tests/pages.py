"""A page taken apart, and what every page must be like."""

import itertools
import re
from html.parser import HTMLParser

SCRIPT = "<script>alert('x')</script>"


class Page(HTMLParser):
    """A page taken apart: its tags in order with their attributes, and its text."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text, self.commands = [], [], "", []
        self.feed(html)
        assert self.open == []  # every tag was closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if ("class", "command") in attrs:
            self.commands.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.of("pre") and "pre" in self.open and self.of("pre")[-1].get("class") == "command":
            self.commands[-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def check_form(html):
    """Nothing is loaded or runs, classes have a style, headings and tables an order."""
    page = Page(html)
    for _, attributes in page.tags:  # nothing from outside, and references that hold
        assert not {"src", "srcset", "onclick", "onload"} & set(attributes)
        for kind in attributes.get("class", "").split():  # every class has a style
            assert f".{kind}" in html, kind
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not any(re.match(r"\w+:|//", a["href"]) for a in page.of("a"))
    assert all(th.get("scope") in ("row", "col") for th in page.of("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.of("html")[0]["lang"] == "en"
    body = html[html.index("<body") :]
    assert not re.search(r"#[0-9a-f]{6}", body)  # every colour is the page's
    assert set(re.findall(r'style="([\w-]+):', body)) <= {"flex-grow"}


# Of every element with text of its own: contrast of the text with what lies behind it (WCAG 2.2).
CONTRAST = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => parse(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if ((parse(c)[3] ?? 1) > 0) return c;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = 21, seen = 0;
  for (const e of document.body.querySelectorAll("*")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const [a, b] = [e instanceof SVGElement ? style.fill : style.color, behind(e)].map(light);
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
    seen += 1;
  }
  return [worst, seen];
})()
"""
