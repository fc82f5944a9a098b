"""Figures: findings computed from the data, floors drawn, missing data told apart from empty."""

import itertools
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from lowprec.report import comparisons, figures, style, words
from lowprec.report.figures.blocks import spread
from lowprec.report.figures.loss import lossy_models
from tests.report import synthetic

FEW = 8
PRODUCTS = synthetic.products(layers=FEW)


def words_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))


def made(picture: style.Picture | None) -> style.Picture:
    assert picture is not None
    return picture


def test_finding_names_the_better_recipe_and_follows_the_data() -> None:
    plain = made(figures.error_by_bits(PRODUCTS))
    assert plain.title.startswith("recipe:nvfp4 keeps 2.")
    assert plain.title.endswith("more than recipe:mxfp4 in fprop, for 0.25 bits more")
    lifted = synthetic.products(lift={"mxfp4": 12.0}, layers=FEW)
    turned = made(figures.error_by_bits(lifted)).title
    assert turned.startswith("recipe:mxfp4 keeps 9.")
    assert turned.endswith("more than recipe:nvfp4 in fprop, for 0.25 bits less")


def test_difference_is_the_paired_median() -> None:
    rows = comparisons.with_series(PRODUCTS).filter(pl.col("role") == "fprop")
    gaps = [
        rows.filter(pl.col("recipe") == f"recipe:{name}").sort("layer")["sqnr_db"]
        for name in ("nvfp4", "mxfp4")
    ]
    found = comparisons.lowest_bits(comparisons.with_series(PRODUCTS))
    assert found is not None and found.layers == FEW and found.resolved
    assert found.decibels == pytest.approx((gaps[0] - gaps[1]).median(), abs=0)
    assert found.interval is not None
    assert found.interval[0] <= found.decibels <= found.interval[1]


def test_an_interval_with_zero_is_not_resolved() -> None:
    level = synthetic.products(lift={"mxfp4": 2.3}, layers=FEW)
    assert made(figures.error_by_bits(level)).title.endswith("dB, not resolved")
    few = comparisons.lowest_bits(comparisons.with_series(synthetic.products(layers=3)))
    assert few is not None and not few.resolved
    assert few.evidence() == "median over 3 layers, too few for an interval"


@pytest.mark.parametrize(
    ("values", "interval"),
    [([1.0] * 5, None), (range(6), (0, 5)), (range(10), (1, 8)), (range(2000), (955, 1044))],
)
def test_median_interval(values: list[float], interval: tuple[float, float] | None) -> None:
    # The ranks of tables of the sign test: 1 of 6, 2 of 10 (97.9 %), 956 of 2000.
    assert comparisons.median_interval(list(values)) == interval


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("draw", [figures.error_by_bits, figures.error_by_layer])
def test_both_floors_are_drawn(draw: Callable[..., style.Picture | None], narrow: bool) -> None:
    picture = made(draw(PRODUCTS, narrow=narrow))
    text = words_of(picture.figure)
    assert "recipe:float32 13" in text and "off scale" in text
    dotted = [line for axes in picture.figure.axes for line in axes.lines]
    assert sum(line.get_linestyle() == ":" for line in dotted) == 3
    legend = [text.get_text() for text in picture.figure.legends[0].get_texts()]
    assert {"recipe:nvfp4", "recipe:mxfp8"} <= set(legend)


def test_floor_within_the_axes_is_drawn_at_its_value() -> None:
    near = synthetic.products(lift={"float32": -90.0}, layers=FEW)
    picture = made(figures.error_by_bits(near))
    floor = comparisons.floor(near, comparisons.FLOAT32, "fprop")
    heights = [np.asarray(line.get_ydata()).tolist() for line in picture.figure.axes[0].lines]
    assert [floor, floor] in heights
    assert "off scale" not in words_of(picture.figure)


def test_the_hardest_layer_is_named() -> None:
    layer = synthetic.LAYERS[2]
    hard = PRODUCTS.with_columns(
        sqnr_db=pl.col("sqnr_db")
        - 20 * ((pl.col("layer") == layer) & (pl.col("role") == "dgrad")).cast(pl.Float64)
    )
    title = made(figures.error_by_layer(hard)).title
    assert title == f"{layer} in dgrad has the lowest SQNR for 6 of 6 recipes"


def test_recipes_that_disagree_on_the_hardest_layer() -> None:
    rows = PRODUCTS.with_row_index().with_columns(
        sqnr_db=pl.col("sqnr_db") - 40 * (pl.col("index") % 25 == 0).cast(pl.Float64)
    )
    title = made(figures.error_by_layer(rows)).title
    assert title == "No product has the lowest SQNR for most of 6 recipes"


def test_one_layer_has_no_figure_by_layer() -> None:
    assert figures.error_by_layer(synthetic.products(layers=1)) is None


def test_series_say_the_engine_where_a_recipe_ran_on_several() -> None:
    other = PRODUCTS.with_columns(engine=pl.lit("engine:fp32"))
    series = comparisons.with_series(pl.concat([PRODUCTS, other]))["series"].unique().to_list()
    assert "recipe:mxfp4, engine:native [P]" in series and "recipe:mxfp4, engine:fp32 [P]" in series


def test_products_without_a_finite_error_are_left_out() -> None:
    broken = PRODUCTS.with_columns(
        sqnr_db=pl.when(pl.col("recipe") == "recipe:mxfp4")
        .then(float("nan"))
        .when(pl.col("recipe") == "recipe:float32")
        .then(float("inf"))
        .otherwise("sqnr_db")
    )
    assert "mxfp4" not in made(figures.error_by_bits(broken)).title
    only = PRODUCTS.filter(pl.col("recipe").is_in(comparisons.BASELINES))
    assert figures.error_by_bits(only) is None


def test_loss_names_the_cheapest_and_the_dearest() -> None:
    title = made(figures.loss_increase(synthetic.model())).title
    assert "recipe:deepseek_v3 costs +0.0002 bits per byte (not resolved)" in title
    assert title.endswith("with recipe:mxfp4 +0.0470 bits per byte")
    other = synthetic.model({"recipe:b": 0.3, "recipe:a": 0.2})
    assert "recipe:a costs +0.2000" in made(figures.loss_increase(other)).title


def test_loss_is_sorted_and_unresolved_marks_are_hollow() -> None:
    shuffled = synthetic.model().sample(fraction=1.0, shuffle=True, seed=1)
    rows = lossy_models(shuffled)
    full = rows.filter(pl.col("quantized") == "both")["increase"].to_list()
    assert full == sorted(full)
    assert rows["quantized"][:3].to_list() == ["weights", "activations", "both"]
    picture = made(figures.loss_increase(shuffled))
    faces = [line.get_markerfacecolor() for line in picture.figure.axes[0].lines]
    assert faces.count("white") == 6
    assert "6 of 18 increases are not resolved" in picture.sentence
    assert "1-2" in words_of(picture.figure)


def test_loss_axis_follows_the_range() -> None:
    wide = made(figures.loss_increase(synthetic.model()))
    even = made(figures.loss_increase(synthetic.model({"recipe:a": 0.2, "recipe:b": 0.3})))
    scales = [picture.figure.axes[0].get_xscale() for picture in (wide, even)]
    assert scales == ["symlog", "linear"]


def test_a_loss_that_falls_is_drawn() -> None:
    model = synthetic.model({"recipe:a": -0.02, "recipe:b": 0.0, "recipe:c": 0.00001})
    assert f"{words.MINUS}0.0200" in made(figures.loss_increase(model)).title


def test_code_use_counts_the_values_that_nothing_takes() -> None:
    rows = [("l", "x", "block:mxfp4", value, 25) for value in (-0.0, 0.0, 6.0, -1.5)]
    names = ["layer", "operand", "block", "value", "count"]
    picture = made(figures.code_use(pl.DataFrame(rows, schema=names, orient="row")))
    assert picture.title == "Elements of l (x) that become zero: 50.0 % with block:mxfp4"
    assert "block:mxfp4 25.0 % and 1.50 bits on 15" in picture.sentence
    heights = [bar.get_height() for bar in picture.figure.axes[0].patches]  # type: ignore[attr-defined] - patches of a bar chart are rectangles
    assert len(heights) == 15 and sum(heights) == 100


def test_code_use_draws_the_scalings_of_fewest_values() -> None:
    blocks = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "nvfp4")
    rows = [("l", "x", f"block:{block}", 1.0, 1) for block in blocks]
    names = ["layer", "operand", "block", "value", "count"]
    picture = made(figures.code_use(pl.DataFrame(rows, schema=names, orient="row")))
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes]
    assert titles == [f"block:{name}" for name in ("mxfp4", "nvfp4", "mxfp6_e2m3", "mxfp6_e3m2")]
    assert picture.sentence.endswith("Not drawn: block:mxfp8_e5m2 and block:mxfp8_e4m3.")


def test_tensor_errors_name_every_block() -> None:
    tensors = synthetic.tensors(names=("a", "b"))
    picture = made(figures.tensor_errors(tensors))
    assert set(tensors["block"]) <= set(words_of(picture.figure).split("\n"))
    floors = tensors.head(1).with_columns(block=pl.lit("format:bfloat16"), sqnr_db=pl.lit(55.0))
    with_floor = made(figures.tensor_errors(pl.concat([tensors, floors])))
    assert "format:bfloat16 55.0 dB" in words_of(with_floor.figure)
    exact = floors.with_columns(block=pl.lit("format:float32"), sqnr_db=pl.lit(float("inf")))
    with_both = made(figures.tensor_errors(pl.concat([tensors, floors, exact])))
    assert "format:float32 exact, off scale" in words_of(with_both.figure)
    assert "format:float32 exact and format:bfloat16 at 55.0 dB" in with_both.sentence


def test_spread_keeps_order_and_distance() -> None:
    heights = spread([0.0, 0.1, 0.1, 5.0, 5.1], 1.0)
    assert heights == sorted(heights)
    assert all(b - a >= 1 - 1e-9 for a, b in itertools.pairwise(heights))


@pytest.mark.parametrize("frame", ["products", "model", "histogram", "tensors"])
def test_no_data_no_figure(frame: str) -> None:
    nothing = pl.DataFrame()
    empty = synthetic.results(products=nothing, model=nothing, histogram=nothing, cards=nothing)
    for draw, name in (
        (figures.error_by_bits, "products"),
        (figures.error_by_layer, "products"),
        (figures.loss_increase, "model"),
        (figures.code_use, "histogram"),
        (figures.tensor_errors, "tensors"),
    ):
        if name == frame:
            assert draw(getattr(empty, frame)) is None


def test_series_look_alike_in_every_figure_and_differ_from_each_other() -> None:
    looks = style.styles(f"recipe:{name}" for name in "zyxwvutsrqpo")
    pairs = {(look["color"], look["marker"]) for look in looks.values()}
    assert len(pairs) == 12 and list(looks) == sorted(looks)


def test_svg_has_no_date_and_its_own_ids() -> None:
    drawn = [made(figures.code_use(synthetic.histogram())).figure for _ in range(2)]
    first, again = (style.svg(figure, "one") for figure in drawn)
    assert first == again
    assert "<metadata" not in first and "http" not in first.replace("http://www.w3.org/", "")
    assert 'id="one-' in first and "url(#one-" in first
