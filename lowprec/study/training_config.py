"""What a training study runs: experiments/train_recipes.toml as values."""

import dataclasses
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

from lowprec.engines.engine import get_engine
from lowprec.gemm.recipe import ROLES, Recipe, get_recipe
from lowprec.models.parameters import TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (arXiv 1412.6980) under a cosine after a linear warm-up; no weight decay.

    Attributes:
      learning_rate: the peak; `final_fraction` of it is left at the last step.
      warmup_steps: from zero to the peak.
      beta1, beta2, epsilon: as the paper has them.
      clip: what the norm of the whole gradient is brought down to.
    """

    learning_rate: float
    final_fraction: float
    warmup_steps: int
    beta1: float
    beta2: float
    epsilon: float
    clip: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train.

    Attributes:
      name: as tables and figures say it.
      recipe: of every linear layer inside the transformer's layers, on the `native` engine.
      order: of the sums, in place of the recipe's.
      tile: of that engine, rows, contraction and columns, in place of the catalogue's.
    """

    name: str
    recipe: str
    order: str | None = None
    tile: tuple[int, int, int] | None = None

    def on_native(self) -> Recipe:
        """The recipe with every product summed by the machine itself, in float32.

        Promotion is left out: `native` adds tiles of 128 k in float32 one after the other, which is
        what promotion every 128 would do. Scales that were applied there are applied to operands.

        Example:
          >>> recipe = Arm(name="deepseek_v3", recipe="deepseek_v3").on_native()
          >>> recipe.promote_every, recipe.scales
          (None, 'operands')
        """
        recipe = get_recipe(self.recipe)
        unset: dict[str, Any] = {"engine": None, "promote_every": None}
        changes: dict[str, Any] = {
            role: dataclasses.replace(getattr(recipe, role), **unset) for role in ROLES
        }
        if recipe.scales == "promotion":
            changes["scales"] = "operands"
        if self.order is not None:
            changes["order"] = self.order
        engine = get_engine("native")
        if self.tile is not None:
            engine = dataclasses.replace(engine, tile=self.tile)
        changes |= {"engine": engine, "promote_every": None}
        return dataclasses.replace(recipe, **changes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One study; see experiments/train_recipes.toml.

    Attributes:
      seeds: how many; each has a start, an order of the data and random words of its own.
      steps: of every arm and seed.
      batch: windows of `model.context` bytes a step.
      history: length of delayed scaling's histories.
      record_every: steps whose mean loss is a row of the table.
      checkpoint_every: steps after which the state is stored.
      capture_steps: steps after which the first arm's parameters are kept for a replay.
      held_out_windows: of the report part, evenly spread.
      budget_minutes: of the whole run.
      baseline, null: arms' names: what gaps are to, and the one that only sums in another order.
    """

    seeds: int
    steps: int
    batch: int
    history: int
    record_every: int
    checkpoint_every: int
    capture_steps: tuple[int, ...]
    held_out_windows: int
    budget_minutes: float
    baseline: str
    null: str
    optimizer: Adam
    model: TransformerConfig
    arm: tuple[Arm, ...]

    def named(self, name: str) -> Arm:
        """The arm of a name.

        Raises:
          ValueError: there is none.
        """
        for arm in self.arm:
            if arm.name == name:
                return arm
        raise ValueError(f"no arm is named {name!r}; there are {', '.join(self.arm_names)}")

    @property
    def arm_names(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(arm.name for arm in self.arm)

    def digest(self, arm: Arm, text: bytes) -> str:
        """SHA-256 of all that an arm's numbers follow from, machine and versions aside.

        Seeds, arms and budget may change between runs that share a directory; these may not.
        """
        shared = {
            "steps": self.steps,
            "batch": self.batch,
            "history": self.history,
            "held_out_windows": self.held_out_windows,
            "optimizer": dataclasses.asdict(self.optimizer),
            "model": dataclasses.asdict(self.model),
            "recipe": repr(arm.on_native()),
            "text": hashlib.sha256(text).hexdigest(),
        }
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()


def read_training_config(path: Path) -> TrainingConfig:
    """Reads a study; unknown and missing keys are errors.

    Raises:
      ValueError: a key that does not belong there, or one that is missing; two arms of one name; a
        baseline or null arm that is none of the arms; steps that `record_every` does not divide.
    """
    data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    tile = tuple(data.pop("tile")) if "tile" in data else None
    try:
        config = TrainingConfig(
            optimizer=Adam(**data.pop("optimizer")),
            model=TransformerConfig(**data.pop("model")),
            arm=tuple(Arm(**one, tile=tile) for one in data.pop("arm")),
            capture_steps=tuple(data.pop("capture_steps")),
            **data,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    names = config.arm_names
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two arms share a name: {', '.join(names)}")
    for name in (config.baseline, config.null):
        config.named(name)
    if config.steps % config.record_every:
        raise ValueError(
            f"{path}: record_every = {config.record_every} must divide steps = {config.steps}"
        )
    return config
