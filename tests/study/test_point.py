"""A point of a study: its key follows from all it depends on, its row from nothing else."""

import dataclasses
import hashlib
import pickle
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import lowprec as lp
from lowprec import metrics
from lowprec.gemm.recipe import get_recipe
from lowprec.study import point as points
from lowprec.study.point import SOURCES, Point
from lowprec.study.point_operands import DISTRIBUTIONS, Drawn, stored_layers
from lowprec.study.point_rows import Batch, batches, measure, measure_points, ordered_product
from tests.layers import imports, modules

PACKAGE = Path(lp.__file__).parent
GAUSSIAN = Drawn(distribution="gaussian")
CARD = (("channels", 64), ("excess_kurtosis", 3.0), ("outlier_channel_ratio", 9.0), ("rms", 0.5))


def point(recipe: str = "mxfp8", **changes) -> Point:
    given = {"role": "fprop", "m": 4, "k": 32, "n": 4, "operands": (GAUSSIAN,) * 2} | changes
    return Point(recipe=get_recipe(recipe).in_role(given["role"]), **given)


def operands(of: Point) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(of.operands, tuple)
    a, b = of.operands
    return a.draw((of.m, of.k), of.seed, "a"), b.draw((of.n, of.k), of.seed, "b").T


@pytest.mark.parametrize(("recipe", "order"), [("mxfp8", "sequential"), ("bf16", "split_k.2")])
def test_the_product_is_that_of_gemm(recipe: str, order: str) -> None:
    of = point(recipe, k=96, role="dgrad")
    of = dataclasses.replace(of, recipe=dataclasses.replace(of.recipe, order=order))
    row = measure(of)
    a, b = operands(of)
    y = np.asarray(lp.gemm(a, np.ascontiguousarray(b), recipe, role="dgrad", order=order))
    assert row.product == hashlib.sha256(y.tobytes()).hexdigest()
    wide = a.astype(np.float64), b.astype(np.float64)
    want = metrics.measure(
        np.asarray(y, np.float64), wide[0] @ wide[1], np.abs(wide[0]) @ np.abs(wide[1])
    )
    for name, value in dataclasses.asdict(want).items():
        assert getattr(row, name) == pytest.approx(value, rel=1e-9), name
    assert row.bits_per_element == of.recipe.dgrad.bits_per_element
    assert row.reproducibility == of.recipe.engine.reproducibility


def test_a_stochastic_recipe_draws_from_the_points_seed() -> None:
    blocks = get_recipe("mxfp4").fprop
    stochastic = dataclasses.replace(blocks.a, rounding="stochastic")
    pair = dataclasses.replace(blocks, a=stochastic)
    recipe = dataclasses.replace(get_recipe("mxfp4"), fprop=pair, dgrad=pair, wgrad=pair)
    rows = [measure(dataclasses.replace(point(seed=x), recipe=recipe)) for x in (0, 0, 1)]
    assert rows[0] == rows[1] and rows[0].product != rows[2].product


def test_the_reference_is_summed_in_one_order() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 40)), rng.standard_normal((40, 5))
    found = ordered_product(a, b)
    for i, j in np.ndindex(found.shape):
        total = 0.0
        for x, y in zip(a[i], b[:, j], strict=True):
            total = float(Fraction(total) + Fraction(float(Fraction(x) * Fraction(y))))
        assert found[i, j] == total
    other = ordered_product(np.asfortranarray(a), np.asfortranarray(b))
    assert np.array_equal(found.view(np.uint64), other.view(np.uint64))


def test_equal_points_have_equal_keys_wherever_they_are() -> None:
    one, two = point(), pickle.loads(pickle.dumps(point()))
    assert one.key == two.key and measure(one) == measure(two)
    table = point("bnb_nf4") if "bnb_nf4" in lp.list_recipes() else point()
    assert pickle.loads(pickle.dumps(table)).key == table.key


def test_a_key_follows_from_all_that_a_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one = point()
    block = one.recipe.fprop.a
    other = dataclasses.replace(one.recipe.fprop, a=dataclasses.replace(block, scale_rule="ceil"))
    changed = [
        one,
        point("mxfp4"),
        point(seed=1),
        point(m=5),
        point(k=64),
        point(role="wgrad"),
        point(operands=(GAUSSIAN, Drawn(distribution="laplace"))),
        # Another recipe under the same names.
        dataclasses.replace(one, recipe=dataclasses.replace(one.recipe, fprop=other)),
        dataclasses.replace(one, recipe=dataclasses.replace(one.recipe, order="split_k.2")),
    ]
    assert len({x.key for x in changed}) == len(changed)
    key, kind = one.key, points.device_kind()
    assert kind not in ("cpu", "cpu cpu") and one.code["device"] == kind
    monkeypatch.setattr(points, "device_kind", lambda: "gpu H100")
    assert one.key != key and one.recipe.engine.reproducibility == "same_backend"
    exact = point("deepseek_v3")
    assert exact.recipe.engine.reproducibility == "bit_exact" and "device" not in exact.code
    key = exact.key
    monkeypatch.setattr(points, "code_version", lambda: {"lowprec": "other"})
    assert exact.key != key


def test_the_code_that_computes_is_what_the_version_is_of() -> None:
    known = modules(PACKAGE)
    counted = {path for some in SOURCES for path in PACKAGE.glob(some)}
    todo, seen = ["lowprec.study.point_rows"], set()
    while todo:
        name = todo.pop()
        if name in known and name not in seen:
            seen.add(name)
            todo += imports(name, known[name], known)
    assert len(seen) > 40
    assert [name for name in sorted(seen) if known[name] not in counted] == []


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_what_is_drawn_repeats_and_is_bfloat16(name: str) -> None:
    of = Drawn(distribution=name, arguments=CARD if name == "card" else ())
    x = of.draw((64, 32), 3, "a")
    assert x.shape == (64, 32) and np.isfinite(x).all() and len(np.unique(x)) > 500
    assert np.array_equal(x, x.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.array_equal(x, of.draw((64, 32), 3, "a"))
    for other in (of.draw((64, 32), 4, "a"), of.draw((64, 32), 3, "b")):
        assert not np.array_equal(x, other)


def test_arguments_change_what_is_drawn() -> None:
    def drawn(name: str, **arguments: float) -> np.ndarray:
        of = Drawn(distribution=name, arguments=tuple(sorted(arguments.items())))
        return of.draw((256, 256), 0, "a").astype(np.float64)

    for name in ("gaussian", "laplace"):
        assert drawn(name, scale=3).std() == pytest.approx(3, rel=0.02)
    assert drawn("student_t", degrees=9).std() == pytest.approx(1, rel=0.02)
    assert drawn("uniform", low=2, high=4).min() >= 2
    assert np.log(np.abs(drawn("lognormal", sigma=0.5))).std() == pytest.approx(0.5, rel=0.02)
    channels = drawn("outlier_channels", share=0.25, factor=8).std(axis=0)
    assert 0.15 < np.mean(channels > 4) < 0.35
    massive = drawn("massive_activations", value=100, channels=3, every=64)
    assert np.count_nonzero(np.abs(massive) == 100) == 3 * 4
    card = drawn("card", **dict(CARD))
    assert np.sqrt(np.mean(card**2)) == pytest.approx(0.5, rel=0.5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((("spread", 1.0),), "did you mean"), ((("scale", float("inf")),), "use a finite number")],
)
def test_arguments_are_looked_at(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said if "finite" in said else "no argument of 'gaussian'"):
        Drawn(distribution="gaussian", arguments=arguments)


def test_a_point_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    file = tmp_path / "dump.npz"
    np.savez(file, x=np.ones((4, 32), np.float32), w=np.ones((32, 4), np.float32))
    (stored, _), *_ = stored_layers(file).values()
    changed = point(operands=dataclasses.replace(stored, digest="of another file"))
    absent = point(operands=dataclasses.replace(stored, path=str(tmp_path / "absent.npz")))
    some = [("changed", changed), ("absent", absent), ("good", point())]
    found = list(measure_points(Batch(points=tuple(some), code=point().code)))
    assert [(x.key, x.status) for x in found] == [
        ("changed", "failed"),
        ("absent", "failed"),
        ("good", "done"),
    ]
    assert "dump.npz is not the file that the study was read with" in found[0].error
    assert found[1].error.startswith("FileNotFoundError") and not found[1].row
    assert found[2].row == dataclasses.asdict(measure(point()))


def test_another_version_on_a_worker_stops_the_study() -> None:
    batch = Batch(points=(("key", point()),), code=point().code | {"numpy": "1.0"})
    with pytest.raises(ValueError, match="another numpy"):
        list(measure_points(batch))


def test_a_product_that_overflows_has_no_sqnr() -> None:
    huge = Drawn(distribution="uniform", arguments=(("high", 3e38), ("low", 2e38)))
    row = measure(point("bf16", operands=(huge, huge)))
    assert np.isnan(row.sqnr_db) and np.isinf(row.gain)


def test_batches_hold_points_of_one_program() -> None:
    some = [point(name, seed=seed) for seed in range(5) for name in ("bf16", "mxfp8")]
    found = batches([(x.key, x) for x in some], 3)
    assert [len(batch.points) for batch in found] == [3, 2, 3, 2]
    assert all(len({x.program for _, x in batch.points}) == 1 for batch in found)
    assert sorted(key for batch in found for key, _ in batch.points) == sorted(x.key for x in some)
