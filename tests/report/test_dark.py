"""Figures can be read on a dark page: every colour has a counterpart, far enough from the card."""

import re

import pytest

from lowprec.report import dark, style
from lowprec.report.page import FIGURES, show
from tests.report import synthetic


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*style.PALETTE, style.INK, style.MUTED])
def test_colours_stand_out_on_the_dark_card(colour: str) -> None:
    # WCAG asks for 4.5 of text and 3 of graphics.
    wanted = 3.0 if colour in style.PALETTE else 4.5
    assert contrast(dark.DARK[colour], dark.CARD) > wanted
    assert len(set(dark.DARK.values())) == len(dark.DARK)


def test_no_colour_of_a_figure_is_left_as_it_is() -> None:
    results = synthetic.results(products=synthetic.products(layers=3))
    for name in FIGURES:
        figure = show(name, results)
        if figure is not None:
            assert re.findall(r"#[0-9a-f]{6}\b", figure.wide)
            assert not re.findall(r"#[0-9a-fA-F]{6}\b", dark.themed(figure.wide))
