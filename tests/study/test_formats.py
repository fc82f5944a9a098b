"""The comparison of formats on small samples: errors, losses, crossings and their configuration."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from lowprec.scaling import get_block, list_blocks
from lowprec.study import crest_sweep, fitted_levels, formats
from lowprec.study.format_config import Config, read_config
from lowprec.study.formats import Measured, Samples
from lowprec.study.matmul_bound import least_error

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "experiments" / "formats.toml"
NAMES = ("mxfp4", "mxfp4_ceil", "nvfp4", "nvfp4_ms_eden", "nvfp4_stochastic_guarded")


@pytest.fixture(scope="module")
def config() -> Config:
    return dataclasses.replace(read_config(CONFIG), tensors=4)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return formats.normal_samples(4, 128, 128, seed=7)


@pytest.fixture(scope="module")
def measured(samples: Samples) -> dict[str, Measured]:
    targets = {f"block:{name}": (get_block(name), "catalogue") for name in NAMES}
    return formats.measure_all(targets, samples)


def test_every_name_of_the_configuration_is_a_block(config: Config) -> None:
    targets = formats.gaussian_targets(config)
    compared = set(list_blocks()) - set(config.skip)
    assert {f"block:{name}" for name in compared} <= set(targets)
    for pair in config.crest.pair:
        assert config.block(pair.integer).tile == config.block(pair.floating).tile
    for entry in config.published:
        assert {f"block:{name}" for name in entry.values} <= set(targets)
    for entry in config.earlier:
        assert {f"block:{name}" for name in entry.values} <= set(targets)
    assert config.block("nvint4").bits_per_element == 4.5
    assert targets["block:mxint6_minimum_error"][1] == "variant of this experiment"


def test_blocks_under_another_rule(config: Config) -> None:
    block = config.block("mxfp8_e5m2_minimum_error")
    assert (block.scale_rule, block.element.name) == ("minimum_error", "float8_e5m2")
    assert config.under_rule("mxfp4", "floor") == "mxfp4"
    with pytest.raises(ValueError, match="no block is called 'mxfp5'"):
        config.block("mxfp5")


def test_configuration_refuses_unknown_and_missing_keys(tmp_path: Path) -> None:
    text = CONFIG.read_text(encoding="utf-8")
    for changed, message in (
        (f"colour = 3\n{text}", "colour"),
        (text.replace("seed = 0\n", "", 1), "seed"),
        (text.replace("[lloyd_max]", "[lloyd]", 1), "lloyd"),
    ):
        path = tmp_path / "formats.toml"
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            read_config(path)


def test_errors_of_known_size(measured: dict[str, Measured], samples: Samples) -> None:
    # The means over a million numbers, in the committed results, with room for 65,536.
    for name, db in (("mxfp4", 18.79), ("mxfp4_ceil", 16.83), ("nvfp4", 20.43)):
        row = formats.gaussian_row(
            f"block:{name}", get_block(name), "catalogue", measured[f"block:{name}"], samples
        )
        assert row.sqnr_low < row.sqnr_db < row.sqnr_high
        assert row.sqnr_db == pytest.approx(db, abs=0.12)
        assert row.mean_squared_error == pytest.approx(10 ** (-row.sqnr_db / 10), rel=0.03)
        assert row.numbers == 4 * 128 * 128 and row.seed == 7


def test_bits_count_scales_and_tensor_scale(measured: dict[str, Measured]) -> None:
    assert measured["block:mxfp4"].bits_per_element == 4.25
    assert measured["block:nvfp4"].bits_per_element == 4.5 + 32 / 128**2


def test_product_errors_lie_above_the_bound(
    measured: dict[str, Measured], samples: Samples
) -> None:
    for name, found in measured.items():
        row = formats.bound_row(name, found, samples)
        assert row.product_error > least_error(row.bits_per_element)
        assert 0.5 < row.excess_low <= row.excess_bits <= row.excess_high < 2.5
        # Two operands with independent errors: nearly twice the error of one.
        one = found.noise.sum() / found.signal.sum()
        assert row.product_error == pytest.approx(2 * one, rel=0.06)


def test_stochastic_blocks_are_unbiased_and_draw_anew(
    measured: dict[str, Measured], samples: Samples
) -> None:
    guarded = measured["block:nvfp4_stochastic_guarded"]
    errors = guarded.errors
    assert abs(errors.gain) < 5 * errors.gain_standard_error
    again = formats.measure_target(get_block("nvfp4_stochastic_guarded"), samples)
    assert np.array_equal(again.noise, guarded.noise)
    other = formats.measure_target(
        get_block("nvfp4_stochastic_guarded"), samples._replace(seed=samples.seed + 100)
    )
    assert not np.array_equal(other.noise, guarded.noise)


def test_rounding_is_paired_with_the_first_block(
    config: Config, measured: dict[str, Measured], samples: Samples
) -> None:
    names = ("nvfp4", "nvfp4_ms_eden", "nvfp4_stochastic_guarded")
    few = dataclasses.replace(config, nvfp4=names)
    rows = [
        formats.gaussian_row(name, get_block(name[6:]), "catalogue", measured[name], samples)
        for name in measured
    ]
    nearest, eden, guarded = formats.rounding_rows(few, rows, measured, samples)
    assert nearest.more_noise_db == 0 and nearest.more_noise_low == nearest.more_noise_high == 0
    assert nearest.published == 9.0e-3 and eden.published is None
    assert 0 < eden.more_noise_low and guarded.more_noise_low > 3.5


def test_losses_are_paired_and_say_what_is_the_same(
    config: Config, measured: dict[str, Measured], samples: Samples
) -> None:
    rules = dataclasses.replace(
        config.scale_rules, bases=("mxfp4",), rules=("floor", "ceil", "minimum_error"), further=()
    )
    few = dataclasses.replace(config, scale_rules=rules)
    # The floor rule stands in for the best scale: what counts here is the pairing.
    known = {name: measured["block:mxfp4"] for name in ("block:mxfp4_minimum_error", "block:mxfp4")}
    fitted = fitted_levels.lloyd_max_name(config.block("mxfp4"))
    known |= {"block:mxfp4_ceil": measured["block:mxfp4_ceil"]}
    known |= {f"block:{fitted}": measured["block:nvfp4"]}
    two_level = {f"block:{name}": measured["block:nvfp4"] for name in rules.two_level}
    two_level[f"block:{fitted_levels.lloyd_max_name(config.block('nvfp4'))}"] = measured[
        "block:nvfp4"
    ]
    rows = {row.rule: row for row in formats.rule_rows(few, known | two_level, samples)}
    assert rows["floor"].outcome == "same" and rows["floor"].loss_db == 0
    assert rows["ceil"].outcome == "worse" and 1.7 < rows["ceil"].low < rows["ceil"].high < 2.2
    assert {"four_over_six (absolute)", "four_over_six (squared)", "lloyd_max"} <= set(rows)


def test_published_figures_are_judged_by_their_sampling(
    config: Config, measured: dict[str, Measured], samples: Samples
) -> None:
    entry = config.published[0]
    few = dataclasses.replace(
        config,
        lloyd_max={},
        published=(
            dataclasses.replace(entry, values={"nvfp4": 9.0e-3}),
            dataclasses.replace(entry, values={"nvfp4": 7.0e-3}),
        ),
    )
    row = formats.gaussian_row(
        "block:nvfp4", get_block("nvfp4"), "catalogue", measured["block:nvfp4"], samples
    )
    near, far = formats.published_rows(few, [row], samples)
    assert near.reproduced and not far.reproduced
    assert far.difference == pytest.approx(2e-3, abs=3e-4)


def test_earlier_figures_are_judged_by_their_sampling(
    config: Config, measured: dict[str, Measured], samples: Samples
) -> None:
    (entry,) = config.earlier
    block = "block:nvfp4"
    row = formats.gaussian_row(block, get_block("nvfp4"), "catalogue", measured[block], samples)
    values = (round(row.sqnr_db, 2), 20.0)
    few = tuple(dataclasses.replace(entry, values={"nvfp4": value}) for value in values)
    near, far = formats.earlier_rows(dataclasses.replace(config, earlier=few), [row])
    assert near.within and not far.within
    assert far.difference == pytest.approx(0.44, abs=0.2)


def test_fitted_levels_beat_every_format_of_their_bits() -> None:
    rng = np.random.default_rng(0)
    block = fitted_levels.lloyd_max_block(get_block("mxfp4"), rng)
    levels = np.asarray(block.element.table)
    assert block.name == "lloyd_max_4bit_1x32_float8_e8m0fnu" and block.bits_per_element == 4.25
    # The floor rule must find the scale that the levels were fitted to: EMAX is 0.
    assert len(levels) == 16 and 1 <= levels[-1] < 2 and (np.diff(levels) > 0).all()
    assert np.allclose(levels, -levels[::-1], atol=0.02)
    samples = formats.normal_samples(4, 128, 128, seed=3)
    fitted, plain = (formats.measure_target(x, samples) for x in (block, get_block("mxfp4")))
    assert fitted.noise.sum() < 0.85 * plain.noise.sum()
    with pytest.raises(ValueError, match="fitted to tiles of a fixed size"):
        fitted_levels.lloyd_max_block(get_block("fp8_channel"), rng)


def test_an_odd_number_of_tensors_makes_no_products() -> None:
    with pytest.raises(ValueError, match="`tensors` = 5; use an even number of at least 4"):
        formats.normal_samples(5, 8, 8, 0)


def test_crest_sweep_finds_the_crossing(config: Config) -> None:
    small = dataclasses.replace(
        config.crest,
        tensors=1,
        generalised_normal=(8.0, 2.0, 0.8),
        student_t=(5.0, 2.0),
        outlier=(0.5, 0.9),
        pair=config.crest.pair[-1:],
    )
    few = dataclasses.replace(config, crest=small)
    rows = list(crest_sweep.crest_rows(few))
    assert [row.family for row in rows] == [
        *["generalised_normal"] * 3, *["student_t"] * 2, *["outlier"] * 2
    ]  # fmt: skip
    assert all(row.blocks == 128 * 128 // 16 and row.low < row.high for row in rows)
    found = {row.family: row for row in crest_sweep.crossing_rows(few, rows)}
    normal = found["generalised_normal"]
    assert normal.outcome == "integer to float" and normal.crest is not None
    assert 2.0 < normal.crest < 2.5 and normal.limit == 4.0
    assert found["student_t"].outcome == "float throughout"
    repeated = list(crest_sweep.crest_rows(few))
    assert repeated == rows


def test_pairs_need_equal_tiles(config: Config) -> None:
    odd = dataclasses.replace(config.crest.pair[0], floating="nvfp4")
    few = dataclasses.replace(config, crest=dataclasses.replace(config.crest, pair=(odd,)))
    with pytest.raises(ValueError, match="pair MX8: tiles of"):
        next(crest_sweep.crest_rows(few))
