"""How long does a training step take under a recipe, beside a bfloat16 one?

    python experiments/throughput_linear.py [--recipes NAME ...] [--rounds 5] [--out DIRECTORY]
    python experiments/throughput_linear.py --layer 256 256 256 --model 1 64 --batch 2 64

Two things are timed on the `native` engine, forward and backward: one linear layer with its three
products, and a whole step of the byte model, from tokens to parameters that have moved by plain
gradient descent. Every recipe is timed once a round, in turn, so that what else the machine does
falls on all alike; a ratio to bf16 is the median over rounds, with its quartiles. An optimizer with
states would take as long under each recipe: the ratios of a step are the largest there are. Times
are of emulation: they say nothing of hardware that has the formats.
"""

import argparse
import dataclasses
import datetime
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

import lowprec as lp
from lowprec.models.parameters import Parameters, TransformerConfig, init, linear_shapes
from lowprec.models.scoring import bits_per_byte, log_probabilities
from lowprec.models.transformer import forward
from lowprec.report.recipe_speed import keep_manifest
from lowprec.report.stored import write_table
from lowprec.study.manifest import manifest
from lowprec.throughput import Compiled, TrainingTime, compiled, in_turn, ratio

What = Literal["layer", "step"]
BASELINE = "bf16"
WANTED, WANTED_COMPILE = 4.0, 60.0
RECIPES = (
    "float32",
    "fp8_tensor",
    "te_current",
    "te_delayed",
    "deepseek_v3",
    "te_blockwise",
    "mxfp8",
    "mxfp4",
    "mxfp4_training",
    "nvfp4",
    "nvfp4_training",
)
HISTORY = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--layer", type=int, nargs=3, default=(2048, 2048, 2048), metavar=("ROWS", "IN", "OUT")
    )
    parser.add_argument("--model", type=int, nargs=2, default=(4, 256), metavar=("LAYERS", "WIDTH"))
    parser.add_argument(
        "--batch", type=int, nargs=2, default=(8, 256), metavar=("WINDOWS", "TOKENS")
    )
    parser.add_argument("--out", type=Path, default=Path("reports/throughput"))
    arguments = parser.parse_args()
    recipes = [on_native(name) for name in dict.fromkeys((BASELINE, *arguments.recipes))]
    start = time.perf_counter()
    rows: list[TrainingTime] = []
    subjects: dict[What, Callable[[lp.Recipe], Compiled]] = {
        "layer": lambda recipe: layer(recipe, *arguments.layer),
        "step": lambda recipe: step(recipe, model(*arguments.model), *arguments.batch),
    }
    for what, make in subjects.items():
        rows += timed(what, recipes, make, arguments.rounds)
        write_table(rows, TrainingTime, arguments.out / "recipes" / "training_steps.csv")
    settings = {x: getattr(arguments, x) for x in ("layer", "model", "batch", "rounds")}
    record = manifest([], [], settings) | {
        "command": f"python experiments/{Path(__file__).name}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(time.perf_counter() - start),
    }
    keep_manifest("training_steps", record, arguments.out / "recipes")


def on_native(name: str) -> lp.Recipe:
    """A recipe with every product summed by the machine itself."""
    recipe = lp.get_recipe(name)
    pairs = {
        role: dataclasses.replace(getattr(recipe, role), engine=None)
        for role in ("fprop", "dgrad", "wgrad")
    }
    return dataclasses.replace(recipe, engine=lp.get_engine("native"), **pairs)


def model(layers: int, width: int) -> TransformerConfig:
    """The byte model's shape in another size, its layers' proportions kept."""
    heads = max(width // 64, 1)
    return TransformerConfig(
        layers=layers, width=width, heads=heads, kv_heads=heads, hidden=11 * width // 4
    )


def layer(recipe: lp.Recipe, rows: int, depth: int, out: int) -> Compiled:
    """One linear layer and the gradients of all that it takes."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (rows, depth), jnp.bfloat16)
    w = jax.random.normal(keys[1], (depth, out)) * depth**-0.5
    dy = jax.random.normal(keys[2], (rows, out), jnp.dtype(recipe.output.name))

    state = state_of(recipe, ())
    history = state.pop("amax_history", None)

    def both(x: jax.Array, w: jax.Array, dy: jax.Array, history: Any, state: Any) -> Any:
        call = lambda x, w, history: lp.linear(x, w, recipe, **state, amax_history=history)
        y, pull = jax.vjp(call, x, w, history)
        return y, pull(dy)

    return compiled(both, x, w, dy, history, state)


def step(recipe: lp.Recipe, config: TransformerConfig, windows: int, tokens: int) -> Compiled:
    """A step of the byte model under plain gradient descent."""
    params = init(jax.random.key(0), config)
    text = jax.random.randint(jax.random.key(1), (windows, tokens), 0, 256).astype(jnp.uint8)
    states = {name: state_of(recipe, (config.layers,)) for name in linear_shapes(config)}

    histories = {name: state.pop("amax_history", None) for name, state in states.items()}

    def loss(params: Parameters, histories: Any, keys: Any) -> jax.Array:
        hook = lambda x, w, state: lp.linear(x, w, recipe, **state[0], amax_history=state[1])
        both = {name: (keys[name], histories[name]) for name in keys}
        logits = forward(params, text, config, linear=hook, states=both)
        return bits_per_byte(log_probabilities(logits, text))

    def one(params: Parameters, histories: Any, keys: Any) -> Any:
        run = jax.value_and_grad(loss, argnums=(0, 1))
        value, (gradient, histories) = run(params, histories, keys)
        moved = jax.tree.map(lambda w, g: w - 0.01 * g, params, gradient)
        return value, moved, histories

    return compiled(one, params, histories, states)


def state_of(recipe: lp.Recipe, axes: tuple[int, ...]) -> dict[str, jax.Array]:
    """What `linear` takes beside x and w, for each of so many layers."""
    state = {}
    if recipe.stochastic:
        state["key"] = jax.random.split(jax.random.key(2), axes)
    if recipe.takes_history:
        state["amax_history"] = jnp.ones((*axes, 3, HISTORY))
    return state


def timed(
    what: What, recipes: list[lp.Recipe], make: Callable[[lp.Recipe], Compiled], rounds: int
) -> list[TrainingTime]:
    """Every recipe once a round, in turn."""
    programs = {}
    for recipe in recipes:
        programs[recipe.name] = make(recipe)
        print(f"{what:6} {recipe.name:24} compiled in {programs[recipe.name].seconds:.1f} s")
    times = in_turn({name: program.call for name, program in programs.items()}, rounds)
    return [row(what, name, times, programs[name]) for name in programs]


def row(what: What, name: str, times: dict[str, list[float]], program: Compiled) -> TrainingTime:
    middle, low, high = ratio(times[name], times[BASELINE])
    met = "met" if middle <= WANTED and program.seconds <= WANTED_COMPILE else "missed"
    seconds, device = statistics.median(times[name]), jax.devices()[0].device_kind
    print(
        f"{what:6} {name:24} {seconds:8.3f} s  {middle:5.2f} times bf16 ({low:.2f} to {high:.2f})  "
        f"wanted {WANTED:g}: {met}",
        flush=True,
    )
    return TrainingTime(
        what=what,
        recipe=name,
        seconds=seconds,
        times_bf16=middle,
        low=low,
        high=high,
        wanted=WANTED,
        wanted_compile=WANTED_COMPILE,
        met=met,
        compile_seconds=program.seconds,
        temporary_bytes=program.temporary_bytes,
        device=device,
    )


if __name__ == "__main__":
    main()
