"""One object's figure: the report's own, by the same names."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

import lowprec as lp
from lowprec.report import drawn, figure, page
from lowprec.report.figures.lattice import lattice
from lowprec.report.results import Results
from lowprec.study.ledger import ledger
from tests.numerics.test_html import EVIL, Reader
from tests.report import synthetic


def results() -> Results:
    products = synthetic.products(layers=2)
    empty = pl.DataFrame()
    return Results(
        products=products,
        tensors=empty,
        cards=empty,
        model=empty,
        histogram=empty,
        timings=empty,
        manifest={},
        command=EVIL,
    )


def test_results_give_the_figures_of_the_page() -> None:
    found = results()
    for name in ("sqnr_by_bits", "sqnr_by_layer"):
        shown = page.show(name, found)
        picture = figure(found, name)
        assert shown is not None and (picture.title, picture.sentence) == (
            shown.title,
            shown.sentence,
        )
    assert figure(found).title == figure(found, "sqnr_by_bits").title
    with pytest.raises(ValueError, match=r"has no data for loss_increase"):
        figure(found, "loss_increase")
    with pytest.raises(ValueError, match=r"`name` = 'x'; of a Results there are sqnr_by_bits, "):
        figure(found, "x")


def test_a_format_shows_its_values_and_steps() -> None:
    picture = figure(lp.get_format("float8_e4m3fn"))
    assert picture.title == (
        "float8_e4m3fn: 126 positive values over 17.8 octaves, 0.00195 to 448; steps between "
        "normal numbers from 6.7 % to 12.5 %"
    )
    assert "subnormals below 0.0156" in picture.sentence
    values = picture.figure.axes[1].lines[0].get_xdata()
    want = lp.get_format("float8_e4m3fn").values
    assert want is not None
    np.testing.assert_array_equal(values, np.sort(want[want > 0])[:-1])


@pytest.mark.parametrize("name", ["int8", "nf4", "float8_e8m0fnu", "float16", "hif8"])
def test_formats_of_all_kinds_have_a_lattice(name: str) -> None:
    picture = lattice(lp.get_format(name), narrow=True)
    assert picture is not None and picture.title.startswith(f"{name}: ")


def test_formats_that_have_none() -> None:
    assert lattice(lp.get_format("float32")) is None
    assert lattice(lp.get_format("ternary")) is None
    with pytest.raises(ValueError, match=r"`shown`, a Format, has no data"):
        figure(lp.get_format("float32"))


def test_a_tensor_shows_the_use_of_its_codes() -> None:
    codes = jnp.asarray(np.arange(64, dtype=np.uint8).reshape(2, 32) % 4)
    q = lp.QTensor(
        codes=codes, scales=jnp.full((2, 1), 127, jnp.uint8), block=lp.get_block("mxfp4")
    )
    assert figure(q).title == (
        "Elements of a tensor (2 x 32) that become zero: 25.0 % with block:mxfp4"
    )


@pytest.mark.slow
def test_a_ledger_shows_its_parts() -> None:
    found = ledger(jnp.full((1, 32), 1.25), jnp.ones((32, 1)), "mxfp4")
    assert set(drawn._figures(found)) == {"ledger_parts", "ledger_energy"}
    assert figure(found).title and figure(found, "ledger_energy").title
    assert "a_gain" in Reader(found._repr_html_()).text


def test_other_objects_are_refused_with_what_there_is() -> None:
    with pytest.raises(TypeError, match=r"`shown` is a str; figures are drawn of a Format, QTen"):
        figure("float8_e4m3fn")


def test_a_picture_and_results_show_in_notebooks() -> None:
    picture = figure(lp.get_format("float4_e2m1fn"))
    text = dataclasses.replace(picture, sentence=EVIL)._repr_html_()
    assert text.startswith("<figure") and "<svg" in text
    assert "<script" not in text and "&lt;script&gt;" in text
    table = Reader(results()._repr_html_())
    assert "products" in table.text and EVIL in table.text and "script" not in table.tags
