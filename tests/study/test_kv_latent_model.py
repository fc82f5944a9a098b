"""A model with latents, read through caches of latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.kv import get_kv_method
from lowprec.models import latent_parameters
from lowprec.models.corpus import Windows
from lowprec.models.latent_parameters import LatentTransformerConfig
from lowprec.models.latent_transformer import forward
from lowprec.study.kv_latent_model import latent_log_probabilities, latent_row, predict_latent
from tests.helpers import assert_bits_equal

CONFIG = LatentTransformerConfig(
    vocabulary=32, layers=2, width=32, heads=2, latent_dim=128, nope_dim=16, rope_dim=16,
    value_dim=16, hidden=32, context=12,
)  # fmt: skip
PARAMS = latent_parameters.init(jax.random.key(0), CONFIG)
TOKENS = np.random.default_rng(1).integers(0, 32, (3, 12)).astype(np.uint8)
PROMPT = 5
TEXT = Windows(
    tokens=TOKENS,
    mask=np.ones((3, 11), bool),
    document=np.array([0, 1, 1], np.int32),
    document_count=2,
)


def through(name: str, mode: str) -> jax.Array:
    given = get_kv_method(name), CONFIG, mode, PROMPT
    # The two arguments come unpacked.
    return latent_log_probabilities(PARAMS, jnp.asarray(TOKENS), *given)  # type: ignore[arg-type]


def test_a_bfloat16_cache_gives_what_the_model_says() -> None:
    found = through("mla_bf16", "before_use")
    assert_bits_equal(found, through("mla_bf16", "exact_prefill"))
    whole = jax.nn.log_softmax(forward(PARAMS, jnp.asarray(TOKENS), CONFIG), axis=-1)
    # The absorbed form rounds elsewhere: latents and products to bfloat16.
    away = float(jnp.abs(found - whole).max())
    assert 0 < away < 0.1 and float(jnp.std(found)) > 0.3


@pytest.mark.parametrize("name", ["mla_fp8_656", "mla_nvfp4"])
def test_coded_latents_are_seen_by_all_tokens_or_by_those_behind_the_prompt(name: str) -> None:
    exact, used, after = (
        np.asarray(through(*x))
        for x in (("mla_bf16", "before_use"), (name, "before_use"), (name, "exact_prefill"))
    )
    assert_bits_equal(after[:, :PROMPT], exact[:, :PROMPT])
    # A first token sees itself alone, coded.
    assert (used[:, 0] != exact[:, 0]).any()
    assert (after[:, PROMPT:] != exact[:, PROMPT:]).any()
    assert 1e-4 < np.abs(used - exact).max() < 1.0


def test_a_row_has_the_bytes_of_the_cache() -> None:
    method = get_kv_method("mla_fp8_656")
    baseline, other = (
        predict_latent(PARAMS, CONFIG, TEXT, x, "before_use", prompt=PROMPT)
        for x in (get_kv_method("mla_bf16"), method)
    )
    row = latent_row(method, "before_use", CONFIG, baseline, other, seed=0)
    # 128 bytes, one float32 scale and 16 bfloat16 numbers, in two layers.
    assert row.bytes_per_token == 2 * (128 + 4 + 32)
    assert row.bits == 8 * (128 + 4 + 32) / 144
    assert row.kl_median > 0 and row.bytes == 3 * (11 - PROMPT + 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [("dsa", "it needs an indexer"), ("mla_fp8_584", "it mixes rotary keys too")],
)
def test_what_the_model_has_not_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        through(name, "before_use")
