"""The study of attention's schedules: its heads, weights and references, and what it found."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from lowprec.numerics.format import get_format
from lowprec.report import stored
from lowprec.report.attention_schedule import (
    TABLES,
    Results,
    attention_schedule_section,
    read_attention_schedule,
    write_attention_schedule,
)
from lowprec.study import attention_accumulation as accumulation
from lowprec.study import attention_outliers as outliers
from lowprec.study import attention_saturation as saturation
from lowprec.study import attention_underflow as underflow
from lowprec.study.attention_heads import draw_head, draw_outliers, rounded
from lowprec.study.attention_schedule import (
    Operands,
    TileScales,
    attend,
    lost,
    reference,
    summed,
    weights,
)
from lowprec.study.attention_schedule_config import (
    Config,
    Head,
    Saturation,
    Setting,
    read_config,
)

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "experiments" / "attention_schedule.toml"
COMMITTED = ROOT / "reports" / "attention_schedule"
E4M3 = get_format("float8_e4m3fn")
SINKS = Head(name="x", score_deviation=2.0, value_mean=1.0, sinks=4, sink_share=0.45)


@pytest.fixture(scope="module")
def config() -> Config:
    return read_config(CONFIG)


@pytest.fixture(scope="module")
def operands() -> Operands:
    return draw_head(SINKS, [0, 1], rows=3, dim=32, length=512)


def test_heads_have_the_scores_sinks_and_means_that_are_asked_for() -> None:
    head = dataclasses.replace(SINKS, score_deviation=0.5)
    q, k, v = draw_head(head, range(8), rows=4, dim=64, length=4096)
    scores = np.einsum("hrd,htd->hrt", q, k)
    # 2^17 normal scores: a standard deviation's own is 0.2 % of it.
    assert scores[..., 4:].std() == pytest.approx(0.5, rel=0.01)
    p = np.exp(scores)
    assert p[..., :4].sum() / p.sum() == pytest.approx(0.45, abs=0.05)
    means = v[:, 4:].mean(axis=1)
    assert np.sqrt(np.mean(means**2)) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("splits", [1, 3])
def test_weights_are_those_of_attention(operands: Operands, order: Any, splits: int) -> None:
    plain = Setting(name="x", weight_format="", order=order, splits=splits)
    exact, found = reference(operands), weights(operands, plain)
    # Scores of at most 20, in float32: weights err by some 2^-24 of 20 * 32 at most.
    np.testing.assert_allclose(summed(found, operands.v), exact, atol=4e-4)
    coarse = dataclasses.replace(plain, weight_format="float8_e4m3fn")
    by_sum = summed(weights(operands, coarse), operands.v)
    np.testing.assert_allclose(attend(operands, coarse), by_sum, atol=4e-4)
    assert np.abs(by_sum - exact).max() > 2e-3


def test_a_shorter_length_is_a_shorter_head(operands: Operands) -> None:
    setting = Setting(name="x", splits=2)
    short = Operands(operands.q, operands.k[:, :256], operands.v[:, :256])
    np.testing.assert_array_equal(attend(operands, setting, 256), attend(short, setting))
    np.testing.assert_array_equal(reference(operands, 256), reference(short))
    for one, other in zip(weights(operands, setting, 256)[:3], weights(short, setting)[:3],
                          strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match="`length` = 100 of 512 tokens: both must be multiples"):
        attend(operands, setting, 100)


def test_lost_weight_is_what_saturates(operands: Operands) -> None:
    fits = weights(operands, Setting(name="x"))
    assert 0 < lost(fits) < 2**-4
    stale = weights(operands, Setting(name="x", rescale_threshold_log2=20.0))
    assert stale.exact.max() * 256 > E4M3.max and lost(stale) > 0.3


def test_scales_are_undone(operands: Operands) -> None:
    held = Operands(*(rounded(x, E4M3) for x in operands))
    plain = attend(held, Setting(name="x", weight_format=""))
    over = Operands(
        *((x * by).astype(np.float32) for x, by in zip(held, (2, 0.25, 8), strict=True))
    )
    tiles = np.ones((2, 4), np.float32)
    scales = TileScales(np.full((2, 3), 0.5, np.float32), tiles * 4, (tiles / 8).astype(np.float32))
    found = attend(over, Setting(name="x", weight_format=""), None, scales)
    np.testing.assert_array_equal(found, plain)


def test_expected_largest_of_normal_numbers() -> None:
    # Known in closed form of two and three.
    assert underflow.largest_of_normals(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-4)
    assert underflow.largest_of_normals(3) == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-4)


def test_threshold_is_where_weights_vanish() -> None:
    setting = Setting(name="x", weight_scale=1.0, tile=2, order="ascending")
    assert underflow.threshold(setting) == pytest.approx(10 * math.log(2))
    for gap, gone in ((6.9, False), (7.0, True)):
        q = np.array([[[1.0]]], np.float32)
        k = np.array([[[gap], [0.0]]], np.float32)
        assert (weights(Operands(q, k, k), setting).rounded[0, 0, 0, 1] == 0) == gone


@pytest.mark.slow
def test_underflow_follows_the_published_share(config: Config) -> None:
    study = dataclasses.replace(
        config.underflow, seeds=8, length=2048, gaps=(4.0, 6.0), sink_values=(0.0,)
    )
    rows = {(row.setting, row.gap): row for row in underflow.underflow_rows(study, 0)}
    for gap in study.gaps:
        first, last = (rows[study.setting[i].name, gap] for i in (0, -1))
        assert abs(first.vanished - first.predicted) < 0.1
        assert last.vanished == 0 and last.ratio_low > 3
    claims = list(underflow.underflow_claims(study, list(rows.values())))
    assert {claim.verdict for claim in claims} <= {"reproduced", "not reproduced"}


@pytest.mark.slow
def test_one_level_shrinks_outputs_and_two_do_not(config: Config) -> None:
    study = dataclasses.replace(
        config.accumulation, seeds=3, together=2, lengths=(1024, 8192),
        head=config.accumulation.head[:1], setting=config.accumulation.setting[:3],
    )  # fmt: skip
    rows = list(accumulation.accumulation_rows(study, study.head[0], 0))
    found = {(row.setting, row.length): row for row in rows}
    one, two = (found[name, 8192] for name in ("Hopper, one level", study.setting[2].name))
    assert one.gain_high < -0.02 and two.sum_high < 0.01 < one.sum_low
    assert found["Hopper, one level", 1024].sum_error < one.sum_low
    exact = found["float32", 8192]
    assert exact.sum_error < 1e-5 < exact.same_error < exact.exact_error


@pytest.mark.slow
def test_saturation_is_what_threshold_and_offset_make_of_it(config: Config) -> None:
    keep = {"E4M3, offset 8, threshold 4", "E4M3, offset 4, threshold 4"}
    study = dataclasses.replace(
        config.saturation, seeds=2, rows=8, length=2048, deviations=(2.0,),
        published=((0.361,), (0.022,)),
        setting=tuple(dataclasses.replace(x, pv="") for x in config.saturation.setting
                      if x.name in keep),
    )  # fmt: skip
    before, after = sorted(saturation.saturation_rows(study, 0), key=lambda row: -row.largest)
    assert E4M3.max < before.largest <= 2**12 and after.largest <= 2**8
    assert before.saturated > 0 == after.saturated
    assert before.same_low > 3 * after.same_high
    # Rounding to four bits loses less than 2^-4 of any weight.
    assert after.lost < 2**-4 < before.lost
    assert max(before.sum_error, after.sum_error) < 1e-4
    for setting in study.setting:
        errors = rows_from_weights(study, setting)
        # A score's last bit may take a weight across the middle of two E4M3 numbers: about one
        # in 2^16 weights. Rows without such a one are equal but for the sums' own rounding.
        assert errors.size == 16 and np.sum(errors > 1e-5) <= 2 and np.median(errors) < 3e-6


def rows_from_weights(study: Saturation, setting: Setting) -> NDArray[np.float64]:
    """How far each row of the output is from what its weights sum to in float64."""
    head = Head(name="normal", score_deviation=2.0, value_mean=0.0)
    units = [[0, unit] for unit in range(study.seeds)]
    drawn = draw_head(head, units, rows=study.rows, dim=study.dim, length=study.length)
    held = Operands(drawn.q, rounded(drawn.k, E4M3), rounded(drawn.v, E4M3))
    exact = summed(weights(held, setting), held.v, row_sum=setting.row_sum)
    difference = np.linalg.norm(attend(held, setting) - exact, axis=2)
    return difference / np.linalg.norm(exact, axis=2)


def test_outliers_are_rare_and_rotation_spreads_them() -> None:
    drawn = draw_outliers([0], length=2048, dim=64, large=10.0, rare=0.001)
    share = np.mean(np.abs(drawn.k) > 6)
    # P(|N(0, 101)| > 6) is 0.55; 2^17 numbers.
    assert share == pytest.approx(0.00055, abs=0.0002)
    turned = outliers.rotate(drawn.k, 0)
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=2), np.linalg.norm(drawn.k, axis=2), rtol=1e-5
    )
    assert np.abs(turned).max() < np.abs(drawn.k).max() / 2


@pytest.mark.parametrize("size", [128, 512])
def test_scaled_numbers_reach_the_formats_largest(operands: Operands, size: int) -> None:
    codes, scale = outliers.scaled(operands.v, size, E4M3)
    assert scale.shape == (2, 512 // size)
    assert np.abs(codes.reshape(2, -1, size * 32)).max(axis=2) == pytest.approx(E4M3.max)
    back = codes * np.repeat(scale, size, axis=1)[:, :, None]
    # Half a unit of three mantissa bits, or of the least number.
    limit = np.maximum(np.abs(operands.v) / 16, E4M3.magnitude(1) * scale.max()) * 1.001
    assert (np.abs(back - operands.v) <= limit).all()


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    text = CONFIG.read_text(encoding="utf-8")
    for old, new, message in (
        ("tile = 512", "tiles = 512", "tiles"),
        ("hopper.wgmma.fp8.fp32", "hopper.fp8", "hopper.fp8"),
        ("rare = 0.001\n", "", "rare"),
    ):
        path = tmp_path / "x.toml"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_config(path)


def committed(name: str) -> pl.DataFrame:
    found = stored.read_table(COMMITTED / f"{name}.csv", TABLES[name], "")
    assert found is not None and not found.is_empty()
    return found


def test_committed_rows_are_of_every_setting(config: Config) -> None:
    rows = committed("accumulation")
    kinds = len(config.accumulation.head) * len(config.accumulation.setting)
    longest = rows.filter(pl.col("length") == max(config.accumulation.lengths))
    assert len(longest) == kinds and rows["sum_error"].is_between(0, 1).all()
    assert len(committed("saturation")) == len(config.saturation.setting) * 5
    assert len(committed("outliers")) == 4 * len(config.outliers.dims) * 3
    gaps = len(config.underflow.gaps) * len(config.underflow.sink_values)
    assert len(committed("underflow")) == len(config.underflow.setting) * gaps


def test_committed_claims_follow_from_committed_rows(config: Config) -> None:
    rows: dict[str, list[Any]] = {
        name: [row(**x) for x in committed(name).to_dicts()]
        for name, row in TABLES.items()
        if name != "claims"
    }
    made = [
        *accumulation.accumulation_claims(config.accumulation, rows["accumulation"]),
        *underflow.underflow_claims(config.underflow, rows["underflow"]),
        *saturation.saturation_claims(config.saturation, rows["saturation"]),
        *outliers.outlier_claims(config.outliers, rows["outliers"]),
    ]
    assert [dataclasses.asdict(x) for x in made] == committed("claims").to_dicts()


def test_the_section_says_every_case_and_nothing_of_nothing(tmp_path: Path) -> None:
    assert read_attention_schedule(tmp_path) is None
    empty = Results.from_rows({}, **dict.fromkeys(TABLES, ()))
    section = attention_schedule_section(empty)
    assert section.figures == [] and section.findings == []


@pytest.mark.slow
def test_there_and_back(tmp_path: Path) -> None:
    frames = {name: committed(name) for name in TABLES}
    results = Results(frames=frames, manifest=stored.read_manifest(COMMITTED))
    written = write_attention_schedule(results, tmp_path)
    assert read_attention_schedule(tmp_path) == written
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        "attention_accumulation", "attention_underflow", "attention_saturation",
        "attention_outliers",
    }  # fmt: skip
    (tmp_path / "claims.csv").unlink()
    with pytest.raises(ValueError, match="there is no such file"):
        read_attention_schedule(tmp_path)
