"""RoPE of a config.json: both spellings of its settings, and its table against plain RoPE."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.kv import Rope
from lowprec.models.checkpoints.rope import CheckpointRope, read_rope, yarn_mscale
from lowprec.models.checkpoints.settings import Settings

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0}


def rope_of(table: dict[str, Any], dim: int = 64) -> CheckpointRope:
    return read_rope(Settings(Path("config.json"), table), dim)


@pytest.mark.parametrize(("kind", "given"), [("llama3", LLAMA3), ("yarn", YARN)])
def test_both_spellings_say_the_same(kind: str, given: dict[str, Any]) -> None:
    new = rope_of({"rope_parameters": {"rope_type": kind, "rope_theta": 5e5, **given}})
    for key in ("rope_type", "type"):
        assert rope_of({"rope_theta": 5e5, "rope_scaling": {key: kind, **given}}) == new
    assert new != rope_of({"rope_theta": 5e5})


def test_plain_rope_is_that_of_every_other_model() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
    places = jnp.arange(5)
    found, plain = rope_of({}, 8).turn(x, places), Rope().turn(x, places)
    np.testing.assert_allclose(np.asarray(found), np.asarray(plain), rtol=1e-6, atol=1e-6)


def test_interleaved_pairs_are_turned_alike() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    settings = Settings(Path("config.json"), {})
    woven = jnp.concatenate([x[:, 0::2], x[:, 1::2]], axis=-1)
    found = read_rope(settings, 8, interleaved=True).turn(x, jnp.arange(5))
    expected = read_rope(settings, 8).turn(woven, jnp.arange(5))
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_llama_3_slows_slow_pairs_alone() -> None:
    scaled = {"rope_scaling": {"type": "llama3", **LLAMA3}}
    plain, slowed = (np.asarray(rope_of(x).speeds) for x in ({}, scaled))
    turns = 8192 * plain / (2 * np.pi)
    np.testing.assert_allclose(slowed[turns > 4], plain[turns > 4], rtol=1e-12)
    np.testing.assert_allclose(slowed[turns < 1], plain[turns < 1] / 8, rtol=1e-12)
    assert (np.diff(slowed) < 0).all()


def test_yarn_sharpens_by_the_logarithm_of_its_factor() -> None:
    assert rope_of({"rope_scaling": {"type": "yarn", **YARN}}).gain == yarn_mscale(40, 1.0) > 1
    both = {"type": "yarn", **YARN, "mscale_all_dim": 1.0}
    assert rope_of({"rope_scaling": both}).gain == 1.0
    given = {"type": "yarn", **YARN, "attention_factor": 0.5}
    assert rope_of({"rope_scaling": given}).gain == 0.5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"rope_scaling": {"type": "yarn"}}, r"`rope_scaling\.factor` is missing"),
        ({"rope_scaling": {"type": "ntk"}}, r"`rope_scaling\.type` is 'ntk'"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` below 1 is not implemented"),
        ({"rope_scaling": 3}, "`rope_scaling` is 3; it must be a table"),
    ],
)
def test_what_is_not_implemented_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_of(table)
    with pytest.raises(ValueError, match="RoPE turns pairs, and its heads have 7 numbers"):
        rope_of({}, 7)
