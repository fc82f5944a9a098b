"""Delayed scaling: TransformerEngine's rule in plain NumPy beside the history of `linear`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from lowprec.gemm import Delayed, OperandPair, Recipe, gemm, get_recipe, linear
from lowprec.gemm.amax_history import largest, rolled
from lowprec.numerics import float32, get_format
from lowprec.scaling import get_block
from tests.gemm.linear_cases import by_products, on, operands
from tests.helpers import assert_bits_equal

F32 = NDArray[np.float32]
LENGTH = 4
LOSS = lambda y: jnp.sum(jnp.sin(y.astype(jnp.float32)))


class Tensor:
    """One tensor's scale and history, as TransformerEngine's fused update keeps them apart."""

    def __init__(self, kind: Any, rule: Delayed) -> None:
        self.kind, self.rule = kind, rule
        self.most = np.float32(ml_dtypes.finfo(kind).max)
        self.scale, self.history = np.float32(1), np.zeros(LENGTH, np.float32)

    def quantize(self, x: F32) -> tuple[F32, np.float32]:
        """The elements, and what they are multiplied by afterwards; collects the amax."""
        self.history[0] = np.max(np.abs(x))
        scaled = np.clip(x * self.scale, -self.most, self.most)
        return scaled.astype(self.kind).astype(np.float32), np.float32(1) / self.scale

    def update(self) -> None:
        newest = self.history[0]
        if newest == 0:
            return
        self.history = np.roll(self.history, -1)
        amax = newest
        if self.rule.algorithm == "max":
            amax = np.float32(0)
            for one in self.history:
                amax = np.fmax(amax, one)
        self.history[0] = 0
        if np.isfinite(amax) and amax > 0:
            self.scale = self.most * np.float32(2.0**-self.rule.margin) / amax
        if np.isinf(self.scale):
            self.scale = np.finfo(np.float32).max


def product(a: tuple[F32, np.float32], b: tuple[F32, np.float32]) -> F32:
    """Elements multiplied and added in float32, k ascending, then scaled."""
    (left, left_scale), (right, right_scale) = a, b
    total = np.zeros((left.shape[0], right.shape[1]), np.float32)
    for k in range(left.shape[1]):
        total = total + left[:, k, None] * right[None, k]
    return left_scale * right_scale * total


def scale_of(amax: np.float32, tensor: Tensor) -> np.float32:
    """What the first number of a history stands for."""
    if amax == 0:
        return np.float32(1)
    with np.errstate(over="ignore"):
        made = tensor.most * np.float32(2.0**-tensor.rule.margin) / amax
    return np.minimum(made, np.finfo(np.float32).max)


def transposed(a: tuple[F32, np.float32]) -> tuple[F32, np.float32]:
    return a[0].T, a[1]


def recipe_of(rule: Delayed) -> Recipe:
    """te_delayed summed in float32, k ascending, and put out so."""
    base = get_recipe("te_delayed")
    pairs = {
        role: dataclasses.replace(getattr(base, role), promote_every=None)
        for role in ("fprop", "dgrad", "wgrad")
    }
    changed = dataclasses.replace(base, delayed=rule, output=get_format("float32"), **pairs)
    return on(changed, "fp32")


def step_operands(step: int) -> tuple[F32, F32, F32]:
    """x, w and dy of a step: a jump, an Inf, a NaN, zeros and the smallest numbers among them."""
    rng = np.random.default_rng(step)
    x, w, dy = (
        rng.normal(size=shape).astype(np.float32) * np.float32(size)
        for shape, size in (((6, 5), 2.0 + step % 3), ((5, 4), 0.3), ((6, 4), 1e-3))
    )
    if step == 5:
        x *= np.float32(1000)
    if step == 8:
        x[2, 1] = np.inf
    if step == 11:
        dy[0, 3] = np.nan
    if step == 13:
        w[:] = 0
    if step == 15:
        dy *= np.float32(1e-40) / np.float32(1e-3)
    return x, w, dy


@pytest.mark.parametrize(
    "rule",
    [Delayed(), pytest.param(Delayed(algorithm="most_recent", margin=2), marks=pytest.mark.slow)],
)
def test_twenty_steps_are_those_of_the_source(rule: Delayed) -> None:
    recipe = recipe_of(rule)

    @jax.jit
    def step(x: jax.Array, w: jax.Array, dy: jax.Array, history: jax.Array) -> Any:
        call = lambda x, w, history: linear(x, w, recipe, amax_history=history)
        y, pull = jax.vjp(call, x, w, history)
        return (y, *pull(dy))

    kinds = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
    tensors = [Tensor(kind, rule) for kind in kinds]
    history = jnp.zeros((3, LENGTH), jnp.float32)
    scales = []
    for number in range(20):
        given = step_operands(number)
        got = step(*given, history)
        with np.errstate(all="ignore"):
            x, w, dy = (t.quantize(array) for t, array in zip(tensors, given, strict=True))
            y, dx = product(x, w), product(dy, transposed(w))
            dw = product(transposed(x), dy)
            for tensor in tensors:
                tensor.update()
        for one, other in zip(got[:3], (y, dx, dw), strict=True):
            np.testing.assert_array_equal(np.isnan(one), np.isnan(other))
            assert_bits_equal(np.nan_to_num(np.asarray(one)), np.nan_to_num(other))
        history = got[3]
        rows = np.asarray(history)
        for row, tensor in zip(rows, tensors, strict=True):
            assert_bits_equal(row[1:], tensor.history[1:])
            scale = scale_of(row[0], tensor)
            assert_bits_equal(np.asarray(scale), np.asarray(tensor.scale))
        scales.append([float(tensor.scale) for tensor in tensors])
        assert number in (0, 13, 15, 16, 17, 18) or np.count_nonzero(y) > 12
    assert len({x for x, _, _ in scales}) > 4 and scales[13][1] == scales[12][1]


def test_the_first_step_is_not_scaled_and_saturates() -> None:
    x, w = jnp.full((2, 32), 1000.0), jnp.ones((32, 2))
    recipe = on("te_delayed", "native")
    start = jnp.zeros((3, 8))
    y = jax.jit(lambda: linear(x, w, recipe, amax_history=start))()
    assert_bits_equal(y, jnp.full((2, 2), 448.0 * 32, jnp.bfloat16))


@pytest.mark.slow
def test_amaxes_of_the_tensors_themselves_make_it_current_scaling() -> None:
    x, w, dy = operands((70,))
    current, delayed = on("te_current", "native"), on("te_delayed", "native")
    history = np.zeros((3, 2), np.float32)
    history[:, 0] = [np.max(np.abs(np.asarray(z, np.float32))) for z in (x, w, dy)]

    @jax.jit
    def run(x: jax.Array, w: jax.Array, dy: jax.Array, history: jax.Array) -> Any:
        call = lambda x, w: linear(x, w, delayed, amax_history=history)
        y, pull = jax.vjp(call, x, w)
        return (y, *pull(dy))

    want = jax.jit(by_products, static_argnames="recipe")(x, w, dy, recipe=current, key=None)
    for one, other in zip(run(x, w, dy, history), want, strict=True):
        assert_bits_equal(one, np.asarray(other).astype(one.dtype))


def layers() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows, two layers' weights, and histories with something in them."""
    rng = np.random.default_rng(2)
    x, weights = rng.normal(size=(4, 32)), rng.normal(size=(2, 32, 32)) / 6
    seen = np.abs(rng.normal(size=(2, 3, LENGTH))) * [[[2.0], [0.5], [1e-2]]]
    return jnp.float32(x), jnp.float32(weights), jnp.float32(seen)


def layer(x: jax.Array, w: jax.Array, history: jax.Array) -> jax.Array:
    recipe = on("te_delayed", "native")
    return jnp.tanh(linear(x, w, recipe, amax_history=history).astype(jnp.float32))


def unrolled(weights: jax.Array, seen: jax.Array, x: jax.Array) -> jax.Array:
    for w, history in zip(weights, seen, strict=True):
        x = layer(x, w, history)
    return LOSS(x)


def scanned(weights: jax.Array, seen: jax.Array, x: jax.Array) -> jax.Array:
    step = jax.checkpoint(lambda x, both: (layer(x, *both), None))
    return LOSS(jax.lax.scan(step, x, (weights, seen))[0])


@pytest.mark.slow
def test_a_training_loop_carries_histories_through_scan_remat_and_jit() -> None:
    x, weights, seen = layers()

    def train(loss: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            weights, seen = state
            value, (gradient, seen) = jax.value_and_grad(loss, argnums=(0, 1))(weights, seen, x)
            return (weights - 0.05 * gradient, seen), value

        return jax.jit(lambda state: jax.lax.scan(step, state, None, length=4))((weights, seen))

    (got_w, got_seen), values = train(scanned)
    (want_w, want_seen), _ = train(unrolled)
    assert_bits_equal(got_w, want_w)
    assert_bits_equal(got_seen, want_seen)
    # Of the layer's input, which is the same in every step.
    assert (np.asarray(got_seen[0, 0, 1:]) == np.max(np.abs(x))).all()
    assert np.isfinite(values).all() and len(np.unique(values)) == 4
    assert (np.asarray(got_seen) > 0).all()


@pytest.mark.slow
def test_members_with_histories_of_their_own_are_as_they_are_alone() -> None:
    x, weights, seen = layers()
    rows = jnp.stack([x, 3 * x])
    gradient = jax.jit(jax.grad(lambda w, h, x: LOSS(layer(x, w, h)), argnums=(0, 1)))
    got = jax.jit(jax.vmap(gradient))(weights, seen, rows)
    for i in range(2):
        for one, other in zip(got, gradient(weights[i], seen[i], rows[i]), strict=True):
            assert_bits_equal(one[i], other)


@pytest.mark.slow
def test_a_tensor_scale_may_come_from_the_history() -> None:
    block = dataclasses.replace(get_block("nvfp4"), name="given", amax_source="given")
    pair = OperandPair(a=block, b=block, a_amax="history", b_amax="history")
    base = on("nvfp4", "native")
    delayed = dataclasses.replace(base, delayed=Delayed(), fprop=pair, dgrad=pair, wgrad=pair)
    x, w, _ = operands((70,))
    history = jnp.asarray([[np.max(np.abs(z)), 0.0] for z in (x, w, w)], jnp.float32)
    assert_bits_equal(linear(x, w, delayed, amax_history=history), gemm(x, w, base))


def bits(*values: float) -> jax.Array:
    return float32.to_bits(jnp.asarray(values, jnp.float32))


def test_a_history_of_one_number_is_the_last_step() -> None:
    after = rolled(jnp.asarray([[2.0], [3.0], [0.0]]), bits(5.0, np.inf, 1e-45), Delayed())
    assert_bits_equal(after, np.array([[5.0], [3.0], [1e-45]], np.float32))


def test_the_largest_magnitude_keeps_subnormals_and_nan() -> None:
    assert int(largest(jnp.asarray([0.0, -1e-45], jnp.float32))) == 1
    assert int(largest(jnp.asarray([-jnp.inf, 1.0], jnp.bfloat16))) == 0x7F800000
    assert int(largest(jnp.asarray([jnp.nan, jnp.inf]))) > 0x7F800000


@pytest.mark.parametrize(
    ("error", "message", "history"),
    [
        (ValueError, r"pass `amax_history`, jnp\.zeros\(\(3, 1024\)", None),
        (ValueError, r"has shape \(4, 3\); it is \(3, length\)", jnp.zeros((4, 3))),
        (ValueError, r"has shape \(3, 0\)", jnp.zeros((3, 0))),
        (TypeError, "must be float32, got bfloat16", jnp.zeros((3, 4), jnp.bfloat16)),
    ],
)
def test_a_history_that_does_not_fit_is_named(
    error: type[Exception], message: str, history: Any
) -> None:
    with pytest.raises(error, match=message):
        linear(jnp.ones((2, 4)), jnp.ones((4, 2)), "te_delayed", amax_history=history)


def test_one_product_has_no_history() -> None:
    with pytest.raises(ValueError, match=r"linear\(x, w, 'te_delayed', amax_history=\.\.\.\)"):
        gemm(jnp.ones((2, 4)), jnp.ones((4, 2)), "te_delayed")


def test_recipes_whose_history_makes_no_sense_are_refused() -> None:
    block = get_block("fp8_tensor_delayed")
    with pytest.raises(ValueError, match=r"'te_delayed': .* needs a table \[delayed\]"):
        dataclasses.replace(get_recipe("te_delayed"), delayed=None)
    with pytest.raises(ValueError, match="margin = 100; from -64 to 64"):
        Delayed(margin=100)
    tiles = dataclasses.replace(get_block("fp8_1x128"), name="tiles", amax_source="given")
    with pytest.raises(ValueError, match="b_amax = 'history' needs tiles of whole tensors"):
        OperandPair(a=get_format("bfloat16"), b=tiles, b_amax="history")
    with pytest.raises(ValueError, match="a_from = fp8_tensor_delayed takes an amax of its own"):
        OperandPair(a=block, a_from=block, a_amax="history", b=get_format("bfloat16"))
    with pytest.raises(ValueError, match="a_amax = 'history' and a block with amax_source"):
        OperandPair(a=get_block("fp8_tensor"), a_amax="history", b=get_format("bfloat16"))
