"""Cards that are shared: statistics only, read back as they were, and nothing else believed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lowprec.models.card_files import read_cards, write_cards
from lowprec.models.cards import card
from lowprec.models.synthetic_operands import synthetic_operands


def sample(rng: np.random.Generator, rows: int, channels: int) -> np.ndarray:
    """Numbers with heavy tails, whose channels differ in size."""
    scales = np.exp(0.4 * rng.standard_normal(channels))
    return (rng.standard_t(9, (rows, channels)) * scales).astype(ml_dtypes.bfloat16)


@pytest.fixture
def cards() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, w = sample(rng, 300, 400), sample(rng, 200, 400).T
    return {"layers.0.mlp.up.x": card(x, 1), "layers.0.mlp.up.w": card(w, 0)}


def test_cards_come_back_as_they_were(tmp_path: Path, cards: dict[str, Any]) -> None:
    write_cards(tmp_path / "cards.json", cards, about={"architecture": "LlamaForCausalLM"})
    assert read_cards(tmp_path / "cards.json") == cards


def test_a_file_holds_statistics_alone(tmp_path: Path, cards: dict[str, Any]) -> None:
    write_cards(tmp_path / "cards.json", cards)
    table = json.loads((tmp_path / "cards.json").read_text())
    for found in table["cards"].values():
        assert all(isinstance(x, int | float | str) for k, x in found.items() if k != "shape")
    assert (tmp_path / "cards.json").stat().st_size < 2000


def test_operands_drawn_after_cards_have_like_cards(cards: dict[str, Any]) -> None:
    (layer,) = synthetic_operands(cards, seed=0)
    assert layer.layer == "layers.0.mlp.up" and layer.roles == ("fprop",)
    for name, axis in (("x", 1), ("w", 0)):
        wanted, found = cards[f"layers.0.mlp.up.{name}"], card(getattr(layer, name), axis)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        # The scale of each channel is drawn anew: with 400 of them the mean square of exp(0.4 z)
        # has a relative standard deviation of sqrt((exp(0.64) - 1) / 400) = 5 %.
        assert 0.8 < found.rms / wanted.rms < 1.25
        assert 0.6 < found.outlier_channel_ratio / wanted.outlier_channel_ratio < 1.7
        assert 0.3 < found.excess_kurtosis / wanted.excess_kurtosis < 3


def test_draws_repeat_and_depend_on_seed_and_name(cards: dict[str, Any]) -> None:
    first, again, other = (synthetic_operands(cards, seed=n)[0] for n in (0, 0, 1))
    np.testing.assert_array_equal(first.product("fprop")[0], again.product("fprop")[0])
    assert not np.array_equal(first.product("fprop")[0], other.product("fprop")[0])
    assert synthetic_operands(cards, seed=0, rows=7)[0].product("fprop")[0].shape == (7, 400)


def test_no_number_is_above_the_largest_of_the_card(cards: dict[str, Any]) -> None:
    heavy = {
        name: dataclasses.replace(found, dtype="float8_e4m3fn", excess_kurtosis=50.0, amax=4.0)
        for name, found in cards.items()
    }
    (layer,) = synthetic_operands(heavy, seed=0)
    assert layer.x is not None and np.abs(layer.x.astype(np.float32)).max() == 4.0


def test_cards_beyond_what_can_be_drawn_are_refused(cards: dict[str, Any]) -> None:
    for change in ({"outlier_channel_ratio": 1e300}, {"shape": (1 << 40, 1 << 40)}):
        name = "layers.0.mlp.up.x"
        wrong = cards | {name: dataclasses.replace(cards[name], **change)}
        with pytest.raises(ValueError, match=r"card `layers\.0\.mlp\.up\.x` of shape"):
            synthetic_operands(wrong, seed=0)


def test_a_lone_card_makes_no_layer(cards: dict[str, Any]) -> None:
    assert synthetic_operands({"a.x": cards["layers.0.mlp.up.x"]}, seed=0) == []
    assert synthetic_operands({"latent": cards["layers.0.mlp.up.x"]}, seed=0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms": None}, "`rms` = None must be a finite number"),
        ({"rms": -1.0}, "`rms` = -1.0 must be from 0 to inf"),
        ({"rms": 1e9}, "`rms` = 1000000000.0 must be at most `amax`"),
        ({"zero_fraction": 1.5}, "`zero_fraction` = 1.5 must be from 0 to 1"),
        ({"excess_kurtosis": -3}, "`excess_kurtosis` = -3 must be from -2"),
        ({"amax": 1e999}, "`amax` = inf"),
        ({"shape": [3]}, r"`shape` = \[3\] must be two whole numbers"),
        ({"dtype": "int8"}, "`dtype` = 'int8' must be a float type"),
        ({"dtype": "object_"}, "`dtype` = 'object_' must be a float type"),
        ({"axis": True}, "`axis` = True must be 0 or 1"),
        ({"more": 1}, "has an unknown `more`"),
    ],
)
def test_a_card_that_no_matrix_has_is_refused(
    tmp_path: Path, cards: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "cards.json"
    write_cards(path, cards)
    table = json.loads(path.read_text())
    table["cards"]["layers.0.mlp.up.x"].update(change)
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message) as caught:
        read_cards(path)
    assert str(path) in str(caught.value) and "`layers.0.mlp.up.x`" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "holds no cards"),
        ('{"lowprec_cards": 1}', "`cards` must be a table"),
        ('{"lowprec_cards": 1, "cards": {"a": 1}}', "must be a table of statistics"),
        ('{"lowprec_cards": 1, "cards": {"a": {}}}', "card `a` lacks `shape`"),
    ],
)
def test_a_file_without_cards_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cards.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cards(path)
