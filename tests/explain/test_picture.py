"""A row as a picture: its numbers are those that are explained, and every text stays in its box."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers import ROOT

from minibule.core.complement import log_softmax
from minibule.errors import InputError
from minibule.explain import picture
from minibule.explain.__main__ import main
from minibule.explain.story import explain, passed, scene_of
from minibule.explain.subject import Place
from minibule.methods.table import LOSSES
from minibule.runs.settings import resolve

SVG = "{http://www.w3.org/2000/svg}"
OF_REJECTED = [name for name, loss in LOSSES.items() if loss.uses == "rejected"]


def scene(record=1, **settings):
    return scene_of(resolve(settings), Place(record))


def texts(svg, kind):
    found = ElementTree.fromstring(svg).iter(f"{SVG}text")  # noqa: S314 - our own
    return [node.text for node in found if node.get("class") == kind]


def value(svg, name):
    """The number of a line such as "p('h') = 0.28"."""
    (line,) = [x for line in texts(svg, "value") for x in re.split(r"\s{4}", line)
               if x.startswith(f"{name} = ")]  # fmt: skip
    return float(line.partition(" = ")[2].replace(",", ""))


@pytest.mark.parametrize("objective", OF_REJECTED)
def test_its_numbers_are_those_of_the_row(objective):
    seen = scene(2, objective=objective)
    row = passed(seen).row
    loss, dz = row.loss_at(row.z)
    svg = picture.row_graph(seen)
    rejected = int(row.v.argmax())
    name = picture.shortened(row.name(rejected), picture.TOKEN)
    assert value(svg, f"v({name})") == row.v[rejected] >= 1
    assert value(svg, "T") == row.v.sum()
    assert value(svg, f"z({name})") == pytest.approx(row.z[rejected], abs=5e-5)
    assert value(svg, f"p({name})") == pytest.approx(row.p[rejected], abs=5e-5)
    p_ref = np.exp(log_softmax(row.z_ref))[rejected]
    assert value(svg, f"p_ref({name})") == pytest.approx(p_ref, abs=5e-5)
    assert value(svg, "L") == pytest.approx(loss, rel=1e-5)
    assert value(svg, f"dz({name})") == pytest.approx(dz[rejected], abs=5e-5)
    assert value(svg, "|dz|") == pytest.approx(np.linalg.norm(dz), rel=1e-3)
    assert value(svg, "|dA|") == 0 < value(svg, "|dB|")
    for file in texts(svg, "file"):
        assert (ROOT / "minibule" / file).is_file()


def test_the_text_says_the_same():
    settings = resolve({"objective": "reference"})
    svg = picture.row_graph(scene_of(settings, Place()))
    lines = list(explain(scene_of(settings, Place())))
    said = " ".join(" ".join(lines).split())
    before, after = re.search(r"The row's loss: (\S+) -> (\S+), a change", said).groups()
    assert value(svg, "L") == pytest.approx(float(before), abs=1e-6)
    (stepped,) = [x for x in texts(svg, "value") if x.startswith("  ") and f"{before[:6]}" in x]
    assert float(stepped.split(" -> ")[1]) == pytest.approx(float(after), rel=1e-3)
    norm = re.search(r" dB +\(128, 16\) +(\S+)", said)[1]
    assert value(svg, "|dB|") == pytest.approx(float(norm), rel=1e-2)


def test_every_line_stays_in_its_box():
    """However long prompt and answers are, and whatever stands in them."""
    odd = "<b>\x1b&"
    assert "asked: <b>\\x1b&" in texts(picture.row_graph(scene()._replace(asked=odd)), "formula")
    svg = picture.row_graph(scene()._replace(asked=odd * 40))
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    boxes = [
        tuple(float(node.get(k)) for k in ("x", "y", "width", "height"))
        for node in root.iter(f"{SVG}rect")
        if "box" in node.get("class") and float(node.get("width")) > 20
    ]
    assert len(boxes) == 11
    for node in root.iter(f"{SVG}text"):
        if node.get("class") in ("name", "formula", "value", "file"):
            x, y = float(node.get("x")), float(node.get("y"))
            end = x + picture.LETTER * len(node.text)
            assert any(a < x and end < a + w + 1 and b < y < b + h - 4 for a, b, w, h in boxes), (
                node.text
            )


def test_it_can_be_read_without_being_seen():
    svg = picture.row_graph(scene())
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    assert root.get("role") == "img"
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    for line in texts(svg, "value") + texts(svg, "name"):
        assert line.strip() in description.text
    assert set(picture.LEGEND) <= set(re.findall(r'class="box (\w+)"', svg))


def test_the_command_writes_it(tmp_path, capsys, monkeypatch):
    path = tmp_path / "row.svg"
    main(["--record", "3", "--answer", "2", "--position", "2", "--svg", str(path)])
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith("<svg xmlns")
    with pytest.raises(InputError, match="nowhere"):
        main(["--svg", str(tmp_path / "nowhere" / "row.svg")])
    with pytest.raises(InputError, match=r"row\.svg: exists already; expected a new name"):
        main(["--svg", str(path)])
    with pytest.raises(InputError, match="leave out --svg"):
        main(["--tiny-vocab", "--svg", str(path)])
    assert [file.name for file in tmp_path.iterdir()] == ["row.svg"]
