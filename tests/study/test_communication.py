"""What is sent and received: noise, bytes, leads, claims, and the loss of a model that sends so."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowprec.metrics import relative_frobenius
from lowprec.models.corpus import Windows
from lowprec.models.parameters import TransformerConfig, init
from lowprec.models.transformer import round_to_bfloat16
from lowprec.scaling import get_block
from lowprec.scaling.block import get_format_or_block
from lowprec.study import communication_claims as claims
from lowprec.study.communication import Noise, bits_per_element, by_stage, lead_row, send, stage_row
from lowprec.study.communication_loss import Loss, document_loss, loss_row, loss_rows
from lowprec.study.communication_tensors import DRAWN, Sent, _sent, drawn_tensors

TINY = TransformerConfig(
    vocabulary=32, layers=2, width=32, heads=2, kv_heads=1, head_dim=16, hidden=64
)
LOGFMT8, INT8 = "logfmt8_1x128", "int8_1x128"


@pytest.fixture(scope="module")
def tensor() -> Sent:
    x = np.random.default_rng(0).normal(size=(3, 4, 256)).astype(np.float32)
    x[0, 0, 0] = 0
    x[1, 2, 5] = 1e-30
    return Sent("combine", "one", x)


@pytest.fixture(scope="module")
def received(tensor: Sent) -> dict[str, Noise]:
    return {name: send(tensor, get_format_or_block(name)) for name in (LOGFMT8, INT8)}


def test_noise_is_of_what_was_bfloat16(tensor: Sent, received: dict[str, Noise]) -> None:
    x = tensor.values.astype(np.float64)
    sent = tensor.values.astype(ml_dtypes.bfloat16).astype(np.float32).reshape(-1, 128)
    # INT8, written out in float32: amax / 127 and its nearest multiples.
    scale = np.abs(sent).max(axis=1, keepdims=True) / np.float32(127)
    y = (np.rint(sent / scale) * scale).reshape(x.shape).astype(np.float64)
    found = received[INT8]
    np.testing.assert_allclose(found.noise, np.sum((y - x) ** 2, axis=(1, 2)))
    np.testing.assert_allclose(found.signal, np.sum(x * x, axis=(1, 2)))
    row = found.row
    assert 40 < row.sqnr_db < 50 and row.numbers == x.size and row.units == 3
    assert row.flushed == np.mean((y == 0) & (x != 0))
    relative = (np.abs(y - x)[x != 0] / np.abs(x[x != 0])).ravel()
    assert row.relative_rms == pytest.approx(math.sqrt(np.mean(relative**2)))
    assert row.largest_relative < 1 < row.numbers


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("bfloat16", 16),
        ("e5m6", 12),
        ("e5m6_1x128_pow2", 12 + 8 / 128),
        ("logfmt10_1x128", 10 + 32 / 128),
        ("fp8_1x128_pow2", 8 + 8 / 128),
        ("int8_token", 8 + 32 / 7168),
    ],
)
def test_scales_are_counted(name: str, bits: float) -> None:
    assert bits_per_element(get_format_or_block(name), 7168) == bits


def test_a_lead_is_the_difference_of_two_ratios(received: dict[str, Noise]) -> None:
    rows = {name: stage_row([noise], 7168, seed=0) for name, noise in received.items()}
    lead = lead_row([received[INT8]], [received[LOGFMT8]], seed=0)
    assert lead.lead_db == pytest.approx(rows[INT8].sqnr_db - rows[LOGFMT8].sqnr_db)
    assert lead.low_db <= lead.lead_db <= lead.high_db and lead.outcome == "more"
    back = lead_row([received[LOGFMT8]], [received[INT8]], seed=0)
    assert back.lead_db == -lead.lead_db and back.outcome == "less"
    assert rows[INT8].bytes_per_token == 7168 * 8.25 / 8
    other = received[INT8]._replace(row=dataclasses.replace(received[INT8].row, tensor="two"))
    with pytest.raises(ValueError, match=r"`target` has the tensors \['two'\], `baseline`"):
        lead_row([other], [received[LOGFMT8]], seed=0)
    silent = received[INT8]._replace(noise=np.zeros(3))
    with pytest.raises(ValueError, match="without error has no ratio"):
        stage_row([silent], 7168, seed=0)


def test_stages_hold_their_tensors(received: dict[str, Noise]) -> None:
    one = received[INT8]
    other = one._replace(row=dataclasses.replace(one.row, tensor="two"))
    grouped = by_stage({INT8: [one, other]})
    assert list(grouped) == [("combine", INT8)] and len(grouped["combine", INT8]) == 2


def test_synthetic_tiles_repeat_and_differ_by_seed() -> None:
    first, again, other = (drawn_tensors(seed, 8, 256) for seed in (0, 0, 1))
    assert [x.name for x in first] == list(DRAWN)
    for a, b, c in zip(first, again, other, strict=True):
        assert a.values.shape == (14, 8, 256) and np.array_equal(a.values, b.values)
        assert not np.array_equal(a.values, c.values)
        assert not np.array_equal(a.values[0], a.values[1])


def test_verdicts() -> None:
    assert claims.better(0.1, 0.2) == "reproduced"
    assert claims.better(-0.2, -0.1) == "not reproduced"
    assert claims.better(-0.1, 0.1) == "not resolved"
    assert claims.near(-0.6, 0.6, 0.5) == "not resolved"
    around, above = (-1.0, 1.0), (1.0, 2.0)
    assert claims.unbiased(around, above) == "reproduced"
    assert claims.unbiased(above, above) == "not reproduced"
    assert claims.unbiased(around, around) == "not resolved"


def test_logarithms_are_rounded_to_the_nearest_level() -> None:
    block = get_block(LOGFMT8)
    rng = np.random.default_rng(1)
    x = np.exp(rng.normal(size=(2, 200)) * 6) * rng.choice([-1.0, 1.0], (2, 200))
    x[0, 3] = 0
    x[1, :128] = 0
    y = claims.rounded_in_log_space(x, block)
    assert np.array_equal(y[1, :128], x[1, :128]) and y[0, 3] == 0
    for tile, back in ((x[0, :128], y[0, :128]), (x[0, 128:], y[0, 128:])):
        size = np.abs(tile[tile != 0])
        high = math.log2(size.max())
        low = max(math.log2(size.min()), high - 32)
        # The level below the lowest stands for zero.
        step = (high - low) / 126
        levels = low + step * np.arange(-1, 127)
        for value, got in zip(tile, back, strict=True):
            place = np.argmin(np.abs(levels - math.log2(abs(value)))) if value else 0
            want = math.copysign(2 ** levels[place], value) if place else 0.0
            assert got == pytest.approx(want, rel=1e-12)
    assert 130 < np.sum(y == 0) < 200


@pytest.mark.slow
def test_linear_rounding_shrinks_and_rounding_logarithms_enlarges() -> None:
    tensor = drawn_tensors(0, 256, 256)[0]
    claim = claims.Claim(text="t", kind="unbiased", target=LOGFMT8, baseline="")
    (row,) = claims.gain_rows(claim, [tensor], seed=0)
    assert row.high < 0 < row.baseline_value and row.where == "normal"
    assert (row.target, row.baseline, row.measure) == ("block:logfmt8_1x128", "", "gain")


def losses() -> dict[str, Loss]:
    size = np.array([100.0, 200.0, 300.0])
    bits = np.array([150.0, 320.0, 500.0])
    return {
        "bfloat16": Loss(target="format:bfloat16", bits=bits, bytes=size),
        INT8: Loss(target=f"block:{INT8}", bits=bits + 0.03 * size, bytes=size),
        LOGFMT8: Loss(target=f"block:{LOGFMT8}", bits=bits + 0.001 * size, bytes=size),
    }


def test_loss_is_paired_by_document() -> None:
    found = losses()
    row = loss_row(found["bfloat16"], found[INT8], seed=0)
    assert row.increase == pytest.approx(0.03) and row.low == pytest.approx(row.high)
    assert row.relative == pytest.approx(0.03 * 600 / 970) and row.bytes == 600
    rows = loss_rows(list(found.values()), "format:bfloat16", seed=0)
    assert [x.target for x in rows] == [f"block:{INT8}", f"block:{LOGFMT8}"]
    with pytest.raises(ValueError, match="`baseline` = 'nf4' is not among format:bfloat16"):
        loss_rows(list(found.values()), "nf4", seed=0)


@pytest.mark.parametrize(
    ("kind", "target", "baseline", "verdict"),
    [
        ("better", LOGFMT8, INT8, "reproduced"),
        ("better", INT8, LOGFMT8, "not reproduced"),
        ("near", LOGFMT8, "bfloat16", "reproduced"),
        ("near", INT8, "bfloat16", "not reproduced"),
    ],
)
def test_claims_about_the_loss(
    kind: claims.Kind, target: str, baseline: str, verdict: claims.Verdict
) -> None:
    claim = claims.Claim(text="t", kind=kind, target=target, baseline=baseline)
    row = claims.loss_claim(claim, losses(), margin=0.0025, seed=0)
    assert row.verdict == verdict and row.measure == "loss"


def test_claims_about_the_error(received: dict[str, Noise]) -> None:
    claim = claims.Claim(text="t", kind="better", target=LOGFMT8, baseline=INT8)
    found = by_stage({name: [noise] for name, noise in received.items()})
    (row,) = claims.error_rows(claim, found, seed=0)
    assert (row.where, row.verdict) == ("combine", "not reproduced") and row.value < 0


def tiny_text() -> Windows:
    rng = np.random.default_rng(2)
    return Windows(
        tokens=rng.integers(0, 32, (3, 8)).astype(np.uint8),
        mask=np.arange(7)[None] < np.array([7, 4, 7])[:, None],
        document=np.array([0, 2, 2], np.int32),
        document_count=3,
    )


def test_only_residual_branches_are_sent() -> None:
    params = init(jax.random.key(0), TINY)
    text, coarse = tiny_text(), get_format_or_block("float4_e2m1fn")
    fine = document_loss(params, TINY, text, get_format_or_block("bfloat16"))
    # The document without a window does not count.
    assert fine.bytes.tolist() == [7, 11] and np.all(fine.bits / fine.bytes < 8)
    rough = document_loss(params, TINY, text, coarse)
    assert np.all(np.abs(rough.bits - fine.bits) > 1e-3)
    for group, name in (("attention", "o"), ("mlp", "down")):
        layers = params["layers"]
        silent = layers[group] | {name: jnp.zeros_like(layers[group][name])}
        params = params | {"layers": layers | {group: silent}}
    both = [document_loss(params, TINY, text, x) for x in (coarse, get_format_or_block("bfloat16"))]
    assert np.array_equal(both[0].bits, both[1].bits)


@pytest.mark.slow
def test_gradients_that_are_sent_are_those_of_the_mlp() -> None:
    params, text = init(jax.random.key(1), TINY), tiny_text()
    found = _sent(params, jnp.asarray(text.tokens), jnp.asarray(text.mask), TINY)
    layer, weights = 1, params["layers"]["mlp"]
    gate, up, down = (round_to_bfloat16(weights[x][layer]) for x in ("gate", "up", "down"))

    def mlp(x: jax.Array) -> jax.Array:
        x = round_to_bfloat16(x)
        inner = round_to_bfloat16(jax.nn.silu(x @ gate) * (x @ up))
        return inner @ down

    with jax.default_matmul_precision("highest"):
        y, pull = jax.vjp(mlp, found["dispatch", "mlp.up.x"][layer])
        (dx,) = pull(found["dispatch gradient", "mlp.down.dy"][layer])
    # Sums in another order may fall to the other side of a rounding to bfloat16, here and there.
    assert relative_frobenius(found["combine", "mlp.down.y"][layer], y) < 2e-3
    assert relative_frobenius(found["combine gradient", "mlp.up.dx"][layer], dx) < 2e-3
    assert np.abs(dx).max() > 0 and found["combine", "attention.o.y"].shape == (2, 3, 8, 32)
