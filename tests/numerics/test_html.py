"""Tables for notebooks: of every kind of value, escaped, small, and readable on any page."""

import dataclasses
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import jax.numpy as jnp
import pytest

import lowprec as lp
from lowprec import catalogue
from lowprec.numerics import html

EVIL = "<script>alert('&')</script>"


class Reader(HTMLParser):
    """Checks that tags are closed in their order, and keeps tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def q_of(block: lp.Block) -> lp.QTensor:
    return lp.QTensor(
        codes=jnp.zeros((2, 64), jnp.uint8),
        scales=jnp.zeros((2, 4), jnp.uint8),
        tensor_scale=jnp.ones((1, 1)),
        block=block,
    )


def renamed(value: Any) -> Any:
    return dataclasses.replace(value, name=EVIL)


VALUES: dict[str, Callable[[], Any]] = {
    "format": lambda: lp.get_format("float8_e4m3fn"),
    "table format": lambda: lp.get_format("hif8"),
    "block": lambda: lp.get_block("nvfp4"),
    "affine block": lambda: lp.get_block("int2_kivi_g32"),
    "engine": lambda: lp.get_engine("hopper.wgmma.fp8.fp32"),
    "family": lambda: lp.get_engine("sequential.bfloat16.toward_zero"),
    "recipe": lambda: lp.get_recipe("deepseek_v3"),
    "kv": lambda: lp.get_kv_method("kivi_2bit"),
    "qtensor": lambda: q_of(lp.get_block("nvfp4")),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_table_of_every_kind(kind: str) -> None:
    value = VALUES[kind]()
    shown = Reader(value._repr_html_())
    name = value.block.name if isinstance(value, lp.QTensor) else value.name
    assert name in shown.text and "table" in shown.tags and "script" not in shown.tags
    assert len(value._repr_html_()) < 8_000


@pytest.mark.parametrize("kind", ["format", "block", "engine", "recipe"])
def test_a_name_cannot_add_markup(kind: str) -> None:
    text = renamed(VALUES[kind]())._repr_html_()
    shown = Reader(text)
    assert EVIL in shown.text and "<script" not in text and "script" not in shown.tags


def test_names_inside_cannot_either() -> None:
    block = dataclasses.replace(
        lp.get_block("nvfp4"), name=EVIL, element=renamed(lp.get_format("float4_e2m1fn"))
    )
    for value in (block, q_of(block)):
        assert "<script" not in value._repr_html_()
        assert EVIL in Reader(value._repr_html_()).text
    text = html.grid(EVIL, [EVIL, EVIL], [[EVIL, 1]], EVIL)
    assert "<script" not in text and Reader(text).text.count(EVIL) == 5


def test_the_source_is_named_of_the_catalogues_own_values_alone() -> None:
    own = lp.get_block("nvfp4")
    cited = catalogue.lookup("blocks", "nvfp4").citation
    assert f"Source: {cited}" in Reader(own._repr_html_()).text
    assert "Source" not in dataclasses.replace(own, rounding="nearest_away")._repr_html_()
    assert "Source of the catalogue&#x27;s kv:kivi_2bit" in VALUES["kv"]()._repr_html_()


def test_figures_and_what_differs_from_the_defaults() -> None:
    text = Reader(VALUES["format"]()._repr_html_()).text
    for part in ("max448.0", "min_subnormal0.001953125", "nanall_ones", "has_inffalse"):
        assert part in text
    assert "narrow_range" not in text
    block = Reader(VALUES["block"]()._repr_html_()).text
    assert "elementfloat4_e2m1fn" in block and "bits_per_element4.5" in block
    assert "oas_factor" not in block
    assert "scalesuint8 (2, 4)" in Reader(VALUES["qtensor"]()._repr_html_()).text


def test_no_colour_of_its_own() -> None:
    """Text inherits the page's colour, and lines are grey and half transparent: light and dark."""
    text = VALUES["recipe"]()._repr_html_()
    colours = set(re.findall(r"(?<![-\w])(?:color|background):([^;\"]+)", text))
    assert colours == {"inherit", "transparent"}
    assert set(re.findall(r"rgba?\([^)]*\)|#[0-9a-f]{3,6}\b", text)) == {"rgba(128,128,128,.4)"}


@pytest.mark.slow
def test_every_entry_of_the_catalogue() -> None:
    for kind in ("format", "block", "engine", "recipe", "kv_method"):
        for name in getattr(lp, f"list_{kind}s")():
            assert name in Reader(getattr(lp, f"get_{kind}")(name)._repr_html_()).text
