"""Options: what is made of the fields of a dataclass, and what people write for them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Annotated, Literal

import pytest
from curate.errors import SpecError
from curate.options import Bytes, Concern, Flops, Options, Share, Values, check_choice, check_least, options_of
from curate.pipelines.options import ScoreOptions
from curate.studies.options import CompareOptions, PlanOptions, ProbeOptions
from curate.training.options import RunOptions
from curate.units import format_bytes, parse_bytes, percent
from hypothesis import given
from hypothesis import strategies as st

Colour = Literal["red", "green", "blue"]


@dataclass(frozen=True, kw_only=True)
class Paint(Concern):
    colour: Colour = "red"
    """Paint it in this colour."""
    coats: int = 2

    def __post_init__(self) -> None:
        check_choice(self, "colour")
        check_least(self, 1, "coats")


@dataclass(frozen=True, kw_only=True)
class House(Options):
    name: str
    """Name the
    house."""
    price: Flops | None = None
    cellar: Bytes = 1 << 20
    shared: Annotated[Share | None, Values({"0%": "alone", "100%": "all"})] = None
    """Share it."""
    paint: Paint = field(default_factory=Paint)


def test_options_are_read_from_the_fields():
    found = options_of(House)
    assert list(found) == ["name", "price", "cellar", "shared", "colour", "coats"]
    assert (found["name"].help, found["name"].default, found["name"].concern) == ("Name the house.", MISSING, "")
    assert (found["colour"].help, found["colour"].default) == ("Paint it in this colour.", "red")
    assert (found["colour"].concern, found["colour"].values) == ("paint", ("red", "green", "blue"))
    assert (found["coats"].help, found["coats"].kind) == ("", int)
    assert (found["price"].kind, found["price"].text.parse("2TF", "--price")) == (float, 2e12)
    assert found["cellar"].text.show(found["cellar"].default) == "1MiB"
    assert found["shared"].help == "Share it.\n\n0%: alone.\n\n100%: all."


def test_flat_names_reach_every_concern():
    house = House.of(name="mine", colour="blue", price=3.0)
    assert house == House(name="mine", price=3.0, paint=Paint(colour="blue"))
    other = house.but(coats=3, name="yours")
    assert other == House(name="yours", price=3.0, paint=Paint(colour="blue", coats=3))
    flat = dict(name="yours", price=3.0, cellar=1 << 20, shared=None, colour="blue", coats=3)
    assert other.to_dict() == flat
    assert House.of(**flat) == other


@pytest.mark.parametrize("make", [House.of, House.of(name="mine").but])
def test_what_no_option_is_and_what_an_option_cannot_be(make):
    with pytest.raises(SpecError, match="no option 'color'; the nearest is 'colour'"):
        make(name="mine", color="blue")
    with pytest.raises(SpecError, match=r"no option 'windows'$"):
        make(name="mine", windows=3)
    with pytest.raises(SpecError, match="--colour is 'pink', expected red, green or blue"):
        make(name="mine", colour="pink")
    with pytest.raises(SpecError, match="--coats is 0, expected at least 1"):
        make(name="mine", coats=0)


@dataclass(frozen=True, kw_only=True)
class Twice(Options):
    colour: str = "red"
    paint: Paint = field(default_factory=Paint)


def test_a_name_may_be_there_only_once():
    with pytest.raises(AssertionError, match="two options 'colour'"):
        options_of(Twice)


@pytest.mark.parametrize("options", [RunOptions, PlanOptions, CompareOptions, ProbeOptions, ScoreOptions])
def test_every_option_has_a_help_of_whole_sentences_and_a_default_that_people_can_write(options):
    for option in options_of(options).values():
        assert option.help[0].isupper() and option.help.endswith("."), option
        assert len(option.help.split()) > 3, option
        if option.text and not option.required and option.default is not None:
            assert option.text.parse(option.text.show(option.default), "--option") == option.default, option


@given(st.integers(0, 1 << 50))
def test_bytes_are_read_as_they_are_written(count):
    assert parse_bytes(format_bytes(count), "--host-bytes") == count


@pytest.mark.parametrize(("text", "count"), [("2GiB", 2 << 30), ("1.5 kb", 1500), ("7", 7), (" 3 MB ", 3_000_000)])
def test_bytes_as_people_write_them(text, count):
    assert parse_bytes(text, "--host-bytes") == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 GX", "nan", "1e9", "9" * 400 + "GB", "\uff11GB"])
def test_what_is_no_number_of_bytes(text):
    with pytest.raises(SpecError, match=r"--host-bytes is '.*', expected a number of bytes such as 512MiB"):
        parse_bytes(text, "--host-bytes")


def test_a_comparison_has_finite_budgets():
    base = RunOptions.of(dataset="D", learner="L", budget_flops=1e9)
    for budgets in ({"budgets": (1.0, float("inf"))}, {"ladder": (float("nan"),)}, {"ladder": (0.0,)}):
        with pytest.raises(SpecError, match="--budgets and --ladder are multiples of --budget-flops above 0"):
            CompareOptions(base=base, policies=("uniform",), **budgets)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.64, "64 %"), (-0.091, "-9.1 %"), (-0.0001, "0.0 %"), (0.0, "0.0 %"), (-0.1, "-10 %"), (-0.0996, "-10 %")],
)
def test_a_difference_has_a_sign_where_it_is_one(share, text):
    assert percent(share) == text.replace("-", "\N{MINUS SIGN}")
