"""A training study: its file, its data, one step's parts, its plan, and what it keeps on disk."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowprec.gemm.recipe import ROLES, get_recipe
from lowprec.models.parameters import linear_shapes
from lowprec.study.training import Measured, steps_left
from lowprec.study.training_config import Adam, Arm, TrainingConfig, read_training_config
from lowprec.study.training_plan import plan_of
from lowprec.study.training_rows import final_row, loss_rows
from lowprec.study.training_state import (
    Finished,
    load_arrays,
    load_finished,
    run_path,
    save_arrays,
    save_finished,
)
from lowprec.study.training_step import State, batch_of, beside, key_of, moved, rate, start

CONFIG = Path(__file__).resolve().parents[2] / "experiments" / "train_recipes.toml"
TEXT = np.frombuffer(bytes(range(256)) * 8, np.uint8)


@pytest.fixture(scope="module")
def config() -> TrainingConfig:
    return read_training_config(CONFIG)


@pytest.fixture(scope="module")
def small(config: TrainingConfig) -> TrainingConfig:
    shape = {"layers": 2, "width": 8, "heads": 1, "kv_heads": 1, "head_dim": 4, "hidden": 4}
    model = dataclasses.replace(config.model, context=16, vocabulary=8, **shape)
    return dataclasses.replace(config, model=model, history=4, batch=3, steps=20)


def test_the_committed_study_is_as_large_as_it_must_be(config: TrainingConfig) -> None:
    assert config.steps >= 400 and config.seeds >= 5 and config.budget_minutes <= 90
    assert config.batch * config.model.context >= 2048
    depths = [depth for depth, _ in linear_shapes(config.model).values()]
    assert max(depths) >= 2048
    recipes = {arm.recipe for arm in config.arm}
    assert recipes >= {
        "bf16", "te_delayed", "deepseek_v3", "deepseek_v3_blockwise_dgrad", "mxfp8", "mxfp4",
        "mxfp4_training", "nvfp4_training",
    }  # fmt: skip
    baseline, null = config.named(config.baseline), config.named(config.null)
    assert baseline.recipe == null.recipe and null.order is not None


def test_every_arm_runs_on_the_native_engine_and_keeps_its_operands(config: TrainingConfig) -> None:
    for arm in config.arm:
        recipe, whole = arm.on_native(), get_recipe(arm.recipe)
        for role in ROLES:
            assert recipe.in_role(role).engine.name == "native"
            assert recipe.in_role(role).engine.tile == (128, 128, 128)
            assert recipe.in_role(role).promote_every is None
            assert getattr(recipe, role).a == getattr(whole, role).a
            assert getattr(recipe, role).b == getattr(whole, role).b
        assert recipe.order == (arm.order or whole.order)


def test_the_blockwise_arm_differs_from_deepseek_v3_in_dgrad_alone() -> None:
    one, other = get_recipe("deepseek_v3"), get_recipe("deepseek_v3_blockwise_dgrad")
    assert dataclasses.replace(other, name=one.name, dgrad=one.dgrad) == one
    assert other.dgrad.a == one.fprop.b == other.dgrad.b


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 400", "step = 400", "unexpected keyword argument 'step'"),
        ("clip = 1.0", "", "missing 1 required keyword-only argument: 'clip'"),
        ('name = "mxfp8"', 'name = "mxfp4"', "two arms share a name"),
        ('null = "bf16_null"', 'null = "none"', "no arm is named 'none'; there are bf16, "),
        ("record_every = 10", "record_every = 7", "record_every = 7 must divide steps = 400"),
    ],
)
def test_a_malformed_study_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = CONFIG.read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "study.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_training_config(tmp_path / "study.toml")


def test_windows_follow_from_seed_and_step_alone(small: TrainingConfig) -> None:
    one = batch_of(TEXT, small, 1, 2)
    assert one.shape == (3, 16) and one.dtype == np.uint8
    assert (np.diff(one.astype(int), axis=1) % 256 == 1).all()
    assert np.array_equal(one, batch_of(TEXT, small, 1, 2))
    for seed, step in ((1, 3), (2, 2), (2, 1)):
        assert not np.array_equal(one, batch_of(TEXT, small, seed, step))


def test_delayed_scaling_alone_has_histories(small: TrainingConfig) -> None:
    delayed, plain = (
        jax.eval_shape(lambda name=name: start(small, get_recipe(name), 3))
        for name in ("te_delayed", "bf16")
    )
    assert plain.params == delayed.params == delayed.first == delayed.second
    assert not plain.histories
    assert {x.shape for x in delayed.histories.values()} == {(2, 3, 4)}
    assert delayed.histories.keys() == linear_shapes(small.model).keys()


@pytest.mark.slow
def test_every_arm_of_a_seed_starts_from_the_same_parameters(small: TrainingConfig) -> None:
    delayed = start(small, get_recipe("te_delayed"), 3)
    plain = start(small, get_recipe("bf16"), 3)
    for one, other in zip(
        jax.tree.leaves(delayed.params), jax.tree.leaves(plain.params), strict=True
    ):
        assert np.array_equal(one, other)
    other = start(small, get_recipe("bf16"), 4)
    assert not np.array_equal(other.params["head"], plain.params["head"])


def test_keys_differ_by_weight_layer_step_and_seed(small: TrainingConfig) -> None:
    recipe = get_recipe("mxfp4_stochastic")
    found = set()
    for seed, step in ((0, 0), (0, 1), (1, 0)):
        key = key_of(jnp.uint32(seed), jnp.uint32(step))
        for keys, history in beside(small.model, recipe, {}, key).values():
            assert history is None and keys.shape == (2,)
            found |= {tuple(np.asarray(jax.random.key_data(one)).tolist()) for one in keys}
    assert len(found) == 3 * 7 * 2
    key = key_of(jnp.uint32(0), jnp.uint32(0))
    none = beside(small.model, get_recipe("bf16"), {}, key)
    assert set(none.values()) == {(None, None)}


def test_the_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    adam = adam_of(learning_rate=2.0, warmup_steps=4, final_fraction=0.25)
    rates = jax.vmap(lambda i: rate(i, adam, 20))(jnp.arange(20, dtype=jnp.uint32)).tolist()
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert rates[3:] == sorted(rates[3:], reverse=True)
    np.testing.assert_allclose(rates[-1], 0.5, rtol=1e-6)


def adam_of(**changes: float) -> Adam:
    given = {
        "learning_rate": 0.1, "final_fraction": 0.1, "warmup_steps": 2, "beta1": 0.9,
        "beta2": 0.95, "epsilon": 1e-8, "clip": 1.0,
    }  # fmt: skip
    return Adam(**{**given, **changes})  # type: ignore[arg-type] - warmup_steps is whole


@pytest.mark.parametrize("clip", [1e6, 0.5])
def test_three_steps_of_adam_are_those_of_the_paper(clip: float) -> None:
    rng, adam = np.random.default_rng(0), adam_of(clip=clip)
    want = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    tree = {name: jnp.asarray(x, jnp.float32) for name, x in want.items()}
    zeros = jax.tree.map(jnp.zeros_like, tree)
    state = State(tree, zeros, zeros, {})
    first, second = ({name: 0 * x for name, x in want.items()} for _ in range(2))
    step = jax.jit(lambda given, state, number: moved(given, state, number, adam, jnp.float32(0.1)))
    for number in range(3):
        slopes = {name: rng.normal(size=x.shape) for name, x in want.items()}
        given = {name: jnp.asarray(x, jnp.float32) for name, x in slopes.items()}
        found = step(given, state, jnp.uint32(number))
        state = State(found[0], found[1], found[2], {})
        norm = np.sqrt(sum((x**2).sum() for x in slopes.values()))
        for name, x in slopes.items():
            g = x * min(1, clip / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            unbiased = first[name] / (1 - 0.9 ** (number + 1))
            spread = np.sqrt(second[name] / (1 - 0.95 ** (number + 1)))
            want[name] = want[name] - 0.1 * unbiased / (spread + 1e-8)
    for name, x in want.items():
        np.testing.assert_allclose(state.params[name], x, rtol=2e-5, atol=2e-6)


def test_arrays_come_back_as_they_were_and_others_are_refused(tmp_path: Path) -> None:
    tree = {"a": {"b": jnp.array([1e-40, -0.0, jnp.nan])}, "c": jnp.arange(3, dtype=jnp.uint32)}
    path = tmp_path / "deep" / "x.npz"
    save_arrays(path, tree, {"losses": [0.1]})
    found, meta = load_arrays(path, tree)
    assert meta == {"losses": [0.1]} and [x.name for x in path.parent.iterdir()] == ["x.npz"]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert one.dtype == other.dtype and one.tobytes() == np.asarray(other).tobytes()
    for wrong in ({"a": {"b": np.zeros(3)}}, {"a": {"b": np.zeros(2)}, "c": np.zeros(3)}):
        with pytest.raises(ValueError, match="holds the state of another model or recipe"):
            load_arrays(path, wrong)


def finished(arm: str = "bf16", **changes: object) -> Finished:
    given = {
        "arm": arm, "recipe": arm, "seed": 0, "digest": "d", "losses": [4.0, 3.0, 2.0, 1.0],
        "held_out": 1.5, "held_out_bf16": 1.25, "step_seconds": 0.1, "versions": {},
    }  # fmt: skip
    return Finished(**{**given, **changes})  # type: ignore[arg-type] - as the test says


def test_a_finished_run_is_read_unless_it_was_made_otherwise(tmp_path: Path) -> None:
    done = finished(losses=[0.1, float("inf"), 1 / 3])
    assert load_finished(tmp_path, "bf16", 0) is None
    save_finished(tmp_path, done)
    assert load_finished(tmp_path, "bf16", 0, "d") == done
    with pytest.raises(ValueError, match="was made with other settings, another recipe or another"):
        load_finished(tmp_path, "bf16", 0, "e")


def test_a_digest_changes_with_what_numbers_follow_from(config: TrainingConfig) -> None:
    arm, text = config.arm[0], TEXT.tobytes()
    found = config.digest(arm, text)
    same = dataclasses.replace(config, seeds=9, budget_minutes=1.0, checkpoint_every=3)
    assert same.digest(arm, text) == found
    others = {
        dataclasses.replace(config, steps=401).digest(arm, text),
        dataclasses.replace(config, history=8).digest(arm, text),
        config.digest(config.named("bf16_null"), text),
        config.digest(Arm(name="bf16", recipe="mxfp8"), text),
        config.digest(arm, text[1:]),
    }
    assert len(others) == 5 and found not in others


def test_steps_left_are_those_after_the_stored_state(tmp_path: Path, small: TrainingConfig) -> None:
    arm = small.named("bf16")
    digest = small.digest(arm, TEXT.tobytes())
    assert steps_left(small, arm, 0, tmp_path, TEXT) == 21
    shapes = jax.eval_shape(lambda: start(small, arm.on_native(), 0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    path = run_path(tmp_path, "bf16", 0, "state.npz")
    save_arrays(path, state, {"digest": digest, "losses": [1.0] * 20})
    assert steps_left(small, arm, 0, tmp_path, TEXT) == 1
    save_arrays(path, state, {"digest": "other", "losses": []})
    with pytest.raises(ValueError, match="use another --state"):
        steps_left(small, arm, 0, tmp_path, TEXT)
    save_finished(tmp_path, finished(digest=digest))
    assert steps_left(small, arm, 0, tmp_path, TEXT) == 0


def test_a_plan_beyond_the_budget_says_what_would_fit(config: TrainingConfig) -> None:
    costs = {name: Measured(compile=10.0, step=0.5, score=1.0) for name in ("bf16", "mxfp8")}
    left = {(name, seed): 400 for name in costs for seed in range(5)}
    plan = plan_of(config, costs, left)
    assert plan.total == 20 + 2 * (2000 * 0.5 + 5) and plan.refusal is None
    assert [line.split()[0] for line in plan.lines()] == ["bf16", "mxfp8", "plan:"]
    tight = plan_of(dataclasses.replace(config, budget_minutes=20), costs, left)
    assert tight.refusal is not None
    assert "takes 34 minutes, more than its budget of 20" in tight.refusal
    assert "--seeds 2, " in tight.refusal and "--budget-minutes 35" in tight.refusal
    half = {key: 0 if key[0] == "bf16" else 200 for key in left}
    assert plan_of(config, costs, half).total == 20 + 1000 * 0.5 + 5


def test_rows_are_means_of_as_many_steps_as_they_say() -> None:
    rows = loss_rows(finished(), 2)
    assert [(row.step, row.bits_per_byte) for row in rows] == [(2, 3.5), (4, 1.5)]
    row = final_row(finished())
    assert (row.training, row.held_out, row.held_out_bf16, row.steps) == (1.0, 1.5, 1.25, 4)
