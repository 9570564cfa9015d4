"""The drawing of distance over time."""

import itertools
import re
from xml.etree import ElementTree

import pytest
from tiny_makes import ALIKE, way, ways

from sfvlm.make.chart import CHARACTER, HEIGHT, LINE, WIDTH, chart, labels
from sfvlm.make.ways import Ways

CROWDED = ways(0.05, *(way(f"merging-{number}", 0.05 + number / 1000, difference=ALIKE) for number in range(9)))
SPREAD = ways(
    0.2, way("stride", 1.4, sooner=1.1, difference=ALIKE), way("larger-patch", 0.001, sooner=4, difference=ALIKE)
)


def texts(svg: str, kind: str) -> list[tuple[str, float, float]]:
    root = ElementTree.fromstring(re.sub(' class="chart"', "", svg))
    found = [text for group in root.iter("g") if group.get("class") == kind for text in group.iter("text")]
    return [(text.text or "", float(text.get("x", "0")), float(text.get("y", "0"))) for text in found]


@pytest.mark.parametrize("drawn", [CROWDED, SPREAD, ways(0.05)])
def test_every_way_has_its_name_inside_the_drawing_and_no_two_lie_on_each_other(drawn: Ways) -> None:
    svg = chart(drawn)
    names = [name for kind in ("dense", "sparse", "other") for name in texts(svg, kind)]
    assert sorted(name for name, _, _ in names) == sorted(labels(drawn).values())
    for name, x, y in names:
        assert 0 <= y <= HEIGHT and x + CHARACTER * len(name) <= WIDTH
    for (one, x, y), (other, other_x, other_y) in itertools.combinations(names, 2):
        overlap = x < other_x + CHARACTER * len(other) and other_x < x + CHARACTER * len(one)
        assert not overlap or abs(y - other_y) >= LINE - 0.2, (one, other)


def test_the_drawing_is_said_in_words_too() -> None:
    root = ElementTree.fromstring(chart(SPREAD))
    assert root.get("role") == "img"
    described = root.findtext("desc") or ""
    assert "stride: 909 ms, 1.400 nats a word" in described and "dense: 1e+03 ms" in described


def test_nearer_is_lower_and_sooner_is_further_left() -> None:
    root = ElementTree.fromstring(chart(SPREAD))
    dots = {group.findtext("text"): group.find("circle") for group in root.iter("g")}
    places = {
        name: (float(dot.get("cx", "")), float(dot.get("cy", "")))
        for name, dot in dots.items()
        if name and dot is not None
    }
    assert places["dense"][1] > places["2"][1] > places["sfvlm"][1] > places["1"][1]
    assert places["2"][0] < places["sfvlm"][0] < places["1"][0] < places["dense"][0]
