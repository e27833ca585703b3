"""The README's chart: what it writes, where its names stand, and that it draws whatever is finished."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import pytest
from curate.errors import SpecError
from curate.ledger import BASELINE
from curate.reports.chart import LINE_HEIGHT, ArmPoint, chart, spread_out
from hypothesis import given
from hypothesis import strategies as st

SVG = "{http://www.w3.org/2000/svg}"
CURATED = "curated data alone, uniform"


def arm(name, qualities, seeds=(0, 1)):
    """A run a budget and seed; the second seed is one percent better."""
    return [
        ArmPoint(arm=name, budget=1e12 * 2**i, seed=seed, flops=0.99e12 * 2**i, quality=quality + 0.01 * seed)
        for i, quality in enumerate(qualities)
        for seed in seeds
    ]


POINTS = [*arm(BASELINE, (0.4, 0.5)), *arm("learnability", (0.45, 0.555)), *arm(CURATED, (0.46, 0.55))]


def drawn(points):
    return ElementTree.fromstring(chart(points, quality="accuracy", cost="FLOPs"))


def texts(svg):
    """(y, text) of every line of text."""
    found = []
    for element in svg.iter(f"{SVG}text"):
        y = re.search(r"translate\(\S+ (\S+)\)", element.get("transform", ""))
        found.append((float(y[1]) if y else float(element.get("y")), "".join(element.itertext()).replace("\xa0", " ")))
    return found


def test_names_stand_at_the_ends_with_the_mean_and_apart():
    found = texts(drawn(POINTS))
    lines = ("learnability 56.0 %", "curated data alone,", "uniform 55.5 %", "uniform 50.5 %")
    heights = [y for line in lines for y, text in found if text == line]
    assert len(heights) == len(lines), found
    assert all(b - a > 0.85 * LINE_HEIGHT for a, b in itertools.pairwise(heights))
    assert {"1 TF", "2 TF", "accuracy"} <= {text for _, text in found}


def test_an_arm_that_is_no_policy_has_a_dash_of_its_own_on_a_white_page():
    text = chart(POINTS, quality="accuracy", cost="FLOPs")
    dashes = set(re.findall(r"stroke-dasharray: ([^;]+)", text))
    assert len(dashes) == 2  # uniform's and the curated arm's; learnability is drawn through
    first = next(ElementTree.fromstring(text).iter(f"{SVG}path"))
    assert first.get("style") == "fill: #ffffff" and first.get("d").startswith("M 0 ")
    assert text == chart(POINTS, quality="accuracy", cost="FLOPs")


def test_what_is_finished_is_drawn():
    behind = texts(drawn([*arm(BASELINE, (0.4, 0.5)), *arm("learnability", (0.45,))]))
    assert {"learnability", "45.5 % at 1 TF"} <= {text for _, text in behind}
    assert any(text == "learnability 45.0 %" for _, text in texts(drawn(arm("learnability", (0.45,), seeds=(0,)))))
    with pytest.raises(SpecError, match="no points"):
        drawn([])


@given(st.lists(st.tuples(st.floats(0, 300), st.floats(1, 40)), min_size=1, max_size=8))
def test_labels_never_overlap_and_stay_where_there_is_room(labels):
    wanted, sizes = sorted(place for place, _ in labels), [size for _, size in labels]
    places = spread_out(wanted, sizes)
    needed = [(a + b) / 2 for a, b in itertools.pairwise(sizes)]
    assert all(b - a >= need - 1e-6 for a, b, need in zip(places, places[1:], needed, strict=False))
    if all(b - a >= need for a, b, need in zip(wanted, wanted[1:], needed, strict=False)):
        assert places == pytest.approx(wanted)
    assert sum(places) == pytest.approx(sum(wanted), abs=1e-6)  # nobody is pushed without another pushed the other way
