"""Smoothing, rotation and low rank by their definitions, and what a prepared weight multiplies."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

import lowprec as lp
from lowprec.gemm import (
    OperandPair,
    Preparation,
    Prepared,
    Recipe,
    gemm,
    get_recipe,
    prepare,
    prepare_calibration,
)
from lowprec.gemm.operand import prepare_operand
from lowprec.gemm.preparation import Gptq, LowRank, Rotation, Smoothing
from lowprec.gemm.prepare_calibration import calibration_rows
from lowprec.metrics import sqnr_db
from lowprec.scaling import QTensor, cast, get_block, quantize, transforms
from tests.helpers import assert_bits_equal, graded

K, N = 32, 12
PREPARED = [name for name in lp.list_recipes() if get_recipe(name).prepare is not None]


def rows(count: int = 96, depth: int = K, seed: int = 0) -> NDArray[np.float32]:
    """Rows of x whose channels go together; one is far larger than the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, depth)) @ rng.normal(size=(depth, depth))
    x[:, 5] *= 30
    return x.astype(np.float32)


def weight(depth: int = K, width: int = N, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(depth, width)).astype(np.float32)


def own(base: str = "float32", **steps: Any) -> Recipe:
    """A recipe with a preparation; that of `base` quantizes nothing unless it says so."""
    preparation = Preparation(**steps) if steps else None
    return dataclasses.replace(get_recipe(base), name="own", prepare=preparation)


def on(block: Any, **steps: Any) -> Recipe:
    """A weight in a block, x in float32."""
    pair = OperandPair(a=get_recipe("float32").fprop.a, b=block)
    return dataclasses.replace(own(**steps), fprop=pair)


def wide(x: Any) -> NDArray[np.float64]:
    return np.asarray(x).astype(np.float64)


# Smoothing

SMOOTHQUANT = Smoothing(method="smoothquant", strength=0.5, least=1e-5)
AWQ = Smoothing(method="awq", ratios=6, least=1e-4)


def test_smoothquant_with_powers_of_two_changes_no_product() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 9, (20, K)).astype(np.float32), weight()
    # Largest numbers that are powers of four, so that their roots are powers of two.
    x[0], w[:, 0] = 16.0, 4.0
    x *= np.float32(4.0) ** rng.integers(-3, 4, K).astype(np.float32)
    prepared = prepare(w, own(smoothing=SMOOTHQUANT), calibration=x)
    s = wide(prepared.smoothing)
    np.testing.assert_array_equal(s, np.sqrt(wide(np.abs(x).max(0)) / 4))
    assert len(np.unique(s)) > 3
    assert_bits_equal(prepared.inputs(x), (x / s).astype(np.float32))
    assert_bits_equal(np.asarray(prepared.w), (w * s[:, None]).astype(np.float32))
    np.testing.assert_array_equal(
        wide(prepared.inputs(x))[:, :, None] * wide(prepared.w), wide(x)[:, :, None] * wide(w)
    )


def test_smoothquant_is_its_formula_and_each_side_one_rounding() -> None:
    x, w = rows(), weight()
    w[3] = 0
    recipe = own(smoothing=dataclasses.replace(SMOOTHQUANT, strength=0.75))
    prepared = prepare(w, recipe, calibration=[x[:40], x[40:].reshape(7, 8, K)])
    of_w = np.maximum(wide(np.abs(w).max(1)), 1e-5)
    want = wide(np.abs(x).max(0)) ** 0.75 / of_w**0.25
    assert prepared.smoothing is not None
    np.testing.assert_allclose(prepared.smoothing, want, rtol=1e-6)
    s = np.asarray(prepared.smoothing)
    assert_bits_equal(prepared.inputs(x), x / s)
    assert_bits_equal(np.asarray(prepared.w), w * s[:, None])
    exact = wide(x) @ wide(w)
    np.testing.assert_allclose(wide(prepared.inputs(x)) @ wide(prepared.w), exact, atol=1e-3)


def int4_values(w: NDArray[np.float32]) -> NDArray[np.float64]:
    """int4_g128 of one group, in NumPy."""
    encode = np.float32(7) / np.abs(w).max(0)
    return wide(np.clip(np.rint(w * encode), -7, 7).astype(np.float32) * (np.float32(1) / encode))


@pytest.mark.parametrize("loss", ["weighted", "output"])
@pytest.mark.parametrize("endpoint", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_awq_takes_the_best_ratio_of_its_grid(loss: Any, endpoint: bool) -> None:
    x, w = rows(), weight()
    smoothing = dataclasses.replace(AWQ, loss=loss, endpoint=endpoint)
    prepared = prepare(w, on(get_block("int4_g128"), smoothing=smoothing), calibration=x)
    mean, losses, factors = np.abs(wide(x)).mean(0), [], []
    for i in range(6):
        power = np.maximum((mean / mean.max()).clip(1e-4) ** (i / (5 if endpoint else 6)), 1e-4)
        s = (power / np.sqrt(power.max() * power.min())).astype(np.float32)
        error = wide(w) - int4_values(w * s[:, None]) / wide(s)[:, None]
        weighted = error * mean[:, None] if loss == "weighted" else wide(x) @ error
        losses.append(np.sum(weighted**2))
        factors.append(s)
    best = int(np.argmin(losses))
    assert prepared.ratio is not None and prepared.smoothing is not None
    assert 0 < best < 5, "the grid's end would be found by one who does not look"
    assert float(prepared.ratio) == np.float32(smoothing.grid[best])
    np.testing.assert_allclose(prepared.smoothing, factors[best], rtol=1e-6)


# Rotation


def test_a_rotation_is_undone_exactly_and_leaves_the_product() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-9, 10, s).astype(np.float32) for s in ((5, K), (K, N)))
    prepared = prepare(w, own(rotation=Rotation(kind="hadamard", size=16, seed=7)))
    assert prepared.signs is not None and isinstance(prepared.w, jax.Array)
    signs = np.asarray(prepared.signs)
    assert signs.shape == (K,) and set(signs) == {-1.0, 1.0}
    rotation = prepared.rotation
    assert rotation is not None
    bits = jax.lax.bitcast_convert_type(prepared.w, jnp.uint32)
    undo = jax.jit(lambda x: transforms.undo(x, rotation, -2, prepared.signs))
    assert_bits_equal(np.asarray(undo(bits)).view(np.float32) + 0, w)
    # Sums of integers over 4 are exact, and so is everything that is made of them.
    np.testing.assert_array_equal(wide(prepared.inputs(x)) @ wide(prepared.w), wide(x) @ wide(w))
    h = np.array([[1.0]])
    while len(h) < 16:
        h = np.block([[h, h], [h, -h]])
    turned = np.kron(np.eye(2), h / 4) @ np.diag(signs)
    np.testing.assert_array_equal(prepared.w, turned @ wide(w))


@pytest.mark.slow
def test_rotations_are_seeded() -> None:
    w, x = weight(), rows(4)

    def turned(seed: int | None, kind: Any = "hadamard", size: int = 0) -> NDArray:
        recipe = own(rotation=Rotation(kind=kind, seed=seed, size=size))
        prepared = prepare(w, recipe)
        exact = wide(x) @ wide(w)
        assert sqnr_db(wide(prepared.inputs(x)) @ wide(prepared.w), exact) > 110
        return np.asarray(prepared.w)

    assert_bits_equal(turned(0), turned(0))
    found = [turned(0), turned(1), turned(None), turned(0, "orthogonal"), turned(0, size=4)]
    assert len({x.tobytes() for x in found}) == 5


@pytest.mark.slow
def test_k_is_padded_to_whole_blocks() -> None:
    w, x = weight(20), rows(4, 20)
    prepared = prepare(w, own(rotation=Rotation(kind="hadamard", size=8)))
    assert prepared.w.shape == (24, N) and prepared.inputs(x).shape == (4, 24)
    assert prepared.bits_per_element == 32 * 24 / 20
    assert sqnr_db(prepared.product(x), wide(x) @ wide(w)) > 110
    free = prepare(w, own(rotation=Rotation(kind="hadamard")))
    assert free.rotation is not None and free.rotation.size == 4 and free.w.shape == (20, N)


# Low rank


def tail(matrix: NDArray, rank: int) -> float:
    return float(np.sum(np.linalg.svd(matrix, compute_uv=False)[rank:] ** 2))


@pytest.mark.parametrize("weighting", ["none", "magnitude", "output"])
def test_what_a_low_rank_leaves_are_the_smaller_singular_values(weighting: Any) -> None:
    x, w = rows(), weight()
    low = LowRank(rank=4, of="error", weighting=weighting, format="float32",
                  damping=0.0 if weighting == "output" else None)  # fmt: skip
    recipe = on(get_block("mxfp4"), low_rank=low)
    prepared = prepare(w, recipe, calibration=None if weighting == "none" else x)
    error = wide(w) - wide(cast(jnp.asarray(w), "mxfp4", axis=-2))
    assert prepared.low_rank is not None
    left, right = map(wide, prepared.low_rank)
    assert left.shape == (K, 4) and right.shape == (4, N)
    weights = {
        "none": np.eye(K),
        "magnitude": np.diag(np.abs(wide(x)).mean(0)),
        "output": wide(x) / np.sqrt(len(x)),
    }[weighting]
    rest = np.sum((weights @ (error - left @ right)) ** 2)
    assert rest == pytest.approx(tail(weights @ error, 4), rel=1e-4)
    assert 0.005 < rest / np.sum((weights @ error) ** 2) < 0.9


@pytest.mark.slow
def test_the_product_has_the_low_rank_term_rounded_once() -> None:
    x, w = rows(5), weight()
    recipe = on(get_block("mxfp4"), low_rank=LowRank(rank=4, of="error"))
    prepared = prepare(w, recipe)
    assert prepared.low_rank is not None
    left, right = prepared.low_rank
    assert left.dtype == right.dtype == jnp.bfloat16
    assert prepared.bits_per_element == pytest.approx(4.25 + 16 * 4 * (K + N) / (K * N))
    plain = dataclasses.replace(recipe, prepare=None)
    thin = gemm(gemm(x, left, "bf16", out_dtype=jnp.float32), right, "bf16", out_dtype=jnp.float32)
    main = gemm(x, w, plain)
    assert_bits_equal(prepared.product(x), np.asarray(main) + np.asarray(thin))
    half = prepared.product(x, out_dtype=jnp.bfloat16)
    assert_bits_equal(half, (np.asarray(main) + np.asarray(thin)).astype(jnp.bfloat16))
    exact = wide(x) @ wide(w)
    assert sqnr_db(prepared.product(x), exact) > sqnr_db(main, exact) + 0.5


def test_low_rank_of_the_weight_leaves_the_rest_to_be_quantized() -> None:
    w = weight() + np.outer(np.arange(K), np.ones(N, np.float32)).astype(np.float32)
    prepared = prepare(w, on(get_block("mxfp4"), low_rank=LowRank(rank=2, of="weight")))
    assert prepared.low_rank is not None and isinstance(prepared.w, jax.Array)
    left, right = map(wide, prepared.low_rank)
    assert_bits_equal(prepared.w, (wide(w) - left @ right).astype(np.float32))
    assert np.linalg.norm(prepared.w) < 0.5 * np.linalg.norm(w)


# All of it


@pytest.mark.parametrize("name", graded(PREPARED, fast=["gptq_mxfp4"]))
def test_recipes_of_the_catalogue_prepare_and_multiply(name: str) -> None:
    x, w = rows(120, 64), weight(64, 40)
    recipe = get_recipe(name)
    steps = recipe.prepare
    assert steps is not None
    prepared = prepare(w, recipe, calibration=x if steps.fitted else None)
    exact, other = wide(rows(8, 64, 3)), prepared.product(rows(8, 64, 3))
    assert other.dtype == np.dtype(recipe.output.name)
    assert sqnr_db(other, exact @ wide(w)) > 8
    assert isinstance(prepared.w, QTensor) == (steps.gptq is not None)
    with pytest.raises(ValueError, match=f"recipe '{name}' prepares its weight"):
        gemm(x, w, recipe)
    # The gradients' products take operands as they are.
    assert gemm(x, w, recipe, role="dgrad").shape == (120, 40)


def test_a_quantized_operand_is_multiplied_as_it_is() -> None:
    x, w = jnp.asarray(rows(5)), jnp.asarray(weight())
    q = quantize(w, "mxfp4", axis=-2)
    assert_bits_equal(gemm(x, q, "mxfp4"), gemm(x, w, "mxfp4"))
    batched = gemm(x.reshape(5, 1, K), q, "mxfp4")
    assert_bits_equal(batched[:, 0], gemm(x, w, "mxfp4"))
    loss = lambda x, w: jnp.sum(gemm(x, w, "mxfp4", out_dtype=jnp.float32))
    got = jax.grad(loss)(x, q)
    np.testing.assert_allclose(got, np.tile(wide(q.dequantize()).sum(1), (5, 1)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"quantized as mxfp4 along axis -1 of .*; fprop\.b of"):
        gemm(x, quantize(w, "mxfp4"), "mxfp4")
    with pytest.raises(ValueError, match="is mxfp8_e4m3, a matrix along axis -2"):
        gemm(x, q, "mxfp8")


@pytest.mark.slow
def test_a_prepared_weight_is_a_pytree() -> None:
    x, w = rows(), weight()
    recipe = own("gptq_mxfp4", smoothing=SMOOTHQUANT, gptq=Gptq())
    prepared = prepare(w, recipe, calibration=x)
    want = np.asarray(prepared.product(x[:4]))
    compiled = jax.jit(lambda prepared, x: prepared.product(x))
    assert_bits_equal(compiled(prepared, x[:4]), want)
    assert_bits_equal(jax.vmap(prepared.product)(x[:4, None])[:, 0], want)
    assert prepared.product(x.reshape(4, 24, K)).shape == (4, 24, N)
    assert prepared.product(x[0]).shape == (N,)
    leaves, tree = jax.tree.flatten(prepared)
    again = jax.tree.unflatten(tree, leaves)
    assert isinstance(again, Prepared) and again.recipe == recipe and again.depth == K


def test_a_recipe_without_preparation_is_gemm() -> None:
    x, w = rows(5), weight()
    prepared = prepare(w, "mxfp4")
    assert prepared.w is not None and prepared.rotation is None
    assert_bits_equal(prepared.product(x), gemm(x, w, "mxfp4"))
    assert_bits_equal(prepared.inputs(x), x)


def test_calibration_is_read_in_blocks_and_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows()
    whole = calibration_rows(x, K, lambda *_: None)
    moment = whole.second_moment()
    np.testing.assert_allclose(moment, wide(x).T @ wide(x) / 96, rtol=1e-12)
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr(prepare_calibration, "_ELEMENTS", 10 * K)
    told: list[tuple[str, int, int]] = []
    disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    parts = calibration_rows([disk[:25], disk[25:]], K, lambda *step: told.append(step))
    assert all(np.shares_memory(part, disk) for part in parts.parts)
    np.testing.assert_allclose(parts.second_moment(), moment, rtol=1e-12)
    assert [done for _, done, _ in told] == [10, 20, 25, 35, 45, 55, 65, 75, 85, 95, 96]
    assert {(step, total) for step, _, total in told} == {("second moments", 96)}
    np.testing.assert_array_equal(parts.largest(), np.abs(x).max(0))
    np.testing.assert_allclose(parts.mean_magnitude(), np.abs(wide(x)).mean(0), rtol=1e-12)


def test_progress_reaches_every_step() -> None:
    told = []
    steps = {"smoothing": AWQ, "gptq": Gptq(columns=20), "low_rank": LowRank(rank=1, of="error")}
    recipe = on(get_block("mxfp4"), **steps)
    prepare(weight(), recipe, calibration=rows(), progress=lambda *step: told.append(step))
    assert told == [
        ("mean magnitudes", 96, 96),
        *(("awq", i, 6) for i in range(1, 7)),
        ("second moments", 96, 96),
        ("gptq", 20, 32),
        ("gptq", 32, 32),
        ("low rank", 1, 1),
    ]


def test_values_of_a_format_survive_the_product_s_own_rounding() -> None:
    x, w = rows(), weight()
    recipe = on(lp.get_format("float8_e4m3fn"), gptq=Gptq())
    prepared = prepare(w, recipe, calibration=x)
    assert isinstance(prepared.w, jax.Array)
    values = prepare_operand(prepared.w, recipe.fprop.b, "operands", axis=-2, key=None)[0].values
    assert_bits_equal(values, prepared.w)


W, X = weight(), rows()
NAN = np.where(np.arange(K) == 3, np.float32(np.nan), X)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "fits its preparation to `calibration`: pass rows", (W, "gptq_mxfp4", None)),
        (ValueError, "fits nothing to `calibration`: leave it out", (W, "quarot_w4a4_rotated", X)),
        (ValueError, "fits nothing to `calibration`", (W, "mxfp4", X)),
        (ValueError, r"`w` has shape \(32,\); it is a matrix", (W[:, 0], "gptq_mxfp4", X)),
        (ValueError, "`w` has NaN or Inf", (NAN.T, "gptq_mxfp4", X)),
        (ValueError, "`calibration` has NaN or Inf in rows 0 to 95", (W, "gptq_mxfp4", NAN)),
        (ValueError, r"shape \(96, 31\); it is x .* K = 32", (W, "gptq_mxfp4", X[:, :31])),
        (ValueError, r"shape \(32,\); it is x", (W, "gptq_mxfp4", X[0])),
        (ValueError, "`calibration` is empty", (W, "gptq_mxfp4", [])),
        (ValueError, "all zeros: awq", (W, "awq_int4_g128", 0 * X)),
        (ValueError, r"rank = 32 of a weight \(32, 12\); at most 12", (W, "svdquant_nvfp4", X)),
        (TypeError, "`calibration` must be .*, got float64", (W, "gptq_mxfp4", wide(X))),
        (TypeError, "`w` must be .*, got float64", (wide(W), "gptq_mxfp4", X)),
        (ValueError, "did you mean .*gptq_mxfp4", (W, "gptq_mxfp", X)),
    ],
)
def test_errors(error: type[Exception], message: str, arguments: tuple[Any, Any, Any]) -> None:
    w, recipe, calibration = arguments
    with pytest.raises(error, match=message):
        prepare(w, recipe, calibration=calibration)


def test_what_is_traced_or_differentiated_is_refused() -> None:
    with pytest.raises(TypeError, match=r"`w` is traced .*`prepare` computes on the"):
        jax.jit(lambda w: prepare(w, "mxfp4").product(X))(W)
    with pytest.raises(TypeError, match=r"`prepare` computes on the host: call it first"):
        jax.jit(lambda x: prepare(W, "gptq_mxfp4", calibration=x).product(X))(X)
    prepared = prepare(W, own(rotation=Rotation(kind="hadamard")))
    with pytest.raises(ValueError, match=r"`Prepared\.inputs` has no gradient"):
        jax.grad(lambda x: jnp.sum(prepared.product(x)))(X)
    with pytest.raises(ValueError, match=r"`x` of shape \(96, 31\) .* whose K is 32"):
        prepared.product(X[:, :31])


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("strength is for method", lambda: Smoothing(method="awq", strength=0.5, least=1e-4)),
        ("ratios is for method = 'awq'", lambda: Smoothing(method="awq", least=1e-4)),
        ("strength = 1.5; from 0 to 1", lambda: dataclasses.replace(SMOOTHQUANT, strength=1.5)),
        ("ratios = 1; at least 2", lambda: dataclasses.replace(AWQ, ratios=1)),
        ("least = 0.0; above 0", lambda: dataclasses.replace(AWQ, least=0.0)),
        ("endpoint and loss", lambda: dataclasses.replace(SMOOTHQUANT, loss="output")),
        ("size = 12; a hadamard", lambda: Rotation(kind="hadamard", size=12)),
        ("size = -1; at least 0", lambda: Rotation(kind="hadamard", size=-1)),
        ("needs a seed", lambda: Rotation(kind="orthogonal")),
        ("damping = -1.0; at least 0", lambda: Gptq(damping=-1.0)),
        ("columns = 0; at least 1", lambda: Gptq(columns=0)),
        ("rank = 0; at least 1", lambda: LowRank(rank=0, of="error")),
        ("damping is for weighting", lambda: LowRank(rank=1, of="error", damping=0.1)),
        ("damping is for", lambda: LowRank(rank=1, of="error", weighting="output")),
        ("an empty table", Preparation),
        (
            "draws random numbers",
            lambda: on(get_block("mxfp4_stochastic"), low_rank=LowRank(rank=1, of="error")),
        ),
    ],
)
def test_contradictions_are_refused(message: str, make: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_preparation_says_what_it_takes_and_how_it_repeats() -> None:
    turned = Preparation(rotation=Rotation(kind="hadamard", seed=0))
    assert not turned.fitted and turned.reproducibility == "bit_exact"
    drawn = Preparation(rotation=Rotation(kind="orthogonal", seed=0))
    assert not drawn.fitted and drawn.reproducibility == "same_backend"
    for preparation in (Preparation(gptq=Gptq()), Preparation(smoothing=AWQ)):
        assert preparation.fitted and preparation.reproducibility == "same_backend"
    assert not Preparation(low_rank=LowRank(rank=1, of="error")).fitted
    assert Preparation(low_rank=LowRank(rank=1, of="error", weighting="magnitude")).fitted


MISTAKE = '{ a = "bfloat16", b = "mxfp4" }'


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[prepare]\n", "an empty table; name a step"),
        ("[prepare.gtpq]\n", "no key is named 'gtpq'; did you mean gptq"),
        ('[prepare.smoothing]\nmethod = "awqq"\n', "use one of 'smoothquant', 'awq'"),
        ("[prepare.gptq]\ndamping = -1\n", "gptq: damping = -1"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "own.toml"
    pairs = "".join(f"{role} = {MISTAKE}\n" for role in ("fprop", "dgrad", "wgrad"))
    path.write_text(f'name = "own"\nengine = "native"\noutput = "float32"\n{pairs}{table}')
    with pytest.raises(ValueError, match=message):
        get_recipe(str(path))
