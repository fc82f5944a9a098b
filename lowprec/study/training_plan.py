"""What a training study will take, before it starts."""

import dataclasses
from collections.abc import Mapping

from lowprec.study.training import Measured
from lowprec.study.training_config import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Measured times, and what they add up to.

    Attributes:
      budget: seconds.
      costs: by arm.
      steps: left to do, by arm, over all seeds.
      scores: runs left to finish, by arm.
      seeds: how many the run has.
      each: seconds that one whole seed takes over all arms.
    """

    budget: float
    costs: Mapping[str, Measured]
    steps: Mapping[str, int]
    scores: Mapping[str, int]
    seeds: int
    each: float

    def seconds(self, arm: str) -> float:
        """What an arm still takes, compilation aside."""
        cost = self.costs[arm]
        return self.steps[arm] * cost.step + self.scores[arm] * cost.score

    @property
    def compilation(self) -> float:
        """Seconds of compilation, which have passed when the plan is printed."""
        return sum(cost.compile for cost in self.costs.values())

    @property
    def total(self) -> float:
        """Seconds of the whole run, compilation included."""
        return self.compilation + sum(self.seconds(arm) for arm in self.costs)

    @property
    def refusal(self) -> str | None:
        """Why the run is not started, and what would work; None where it fits."""
        if self.total <= self.budget:
            return None
        fits = int((self.budget - self.compilation) // self.each) if self.each else 0
        fewer = f"--seeds {fits}, " if 0 < fits < self.seeds else ""
        return (
            f"the run takes {self.total / 60:.0f} minutes, more than its budget of "
            f"{self.budget / 60:.0f}; what would work: {fewer}fewer --arms, or "
            f"--budget-minutes {self.total / 60 + 1:.0f}"
        )

    def lines(self) -> list[str]:
        """A line an arm, and the total."""
        rows = [
            f"  {arm:28} {self.steps[arm]:6} steps x {cost.step:.3f} s + "
            f"{self.scores[arm]} scores x {cost.score:.1f} s = {self.seconds(arm):6.0f} s"
            for arm, cost in self.costs.items()
        ]
        total = (
            f"plan: {self.total / 60:.1f} minutes in all for {self.seeds} seeds, of which "
            f"{self.compilation / 60:.1f} are compilation; the budget is {self.budget / 60:.0f}"
        )
        return [*rows, total]


def plan_of(
    config: TrainingConfig, costs: Mapping[str, Measured], left: Mapping[tuple[str, int], int]
) -> Plan:
    """The plan of a study whose arms take `costs` and need `left` steps, by arm and seed.

    >>> from pathlib import Path
    >>> from lowprec.study.training_config import read_training_config
    >>> config = read_training_config(Path("experiments/train_recipes.toml"))
    >>> costs = {name: Measured(compile=1.0, step=0.5, score=2.0) for name in config.arm_names}
    >>> plan = plan_of(config, costs, {("bf16", 0): 400, ("bf16", 1): 0})
    >>> plan.seconds("bf16"), plan.seconds("mxfp8")
    (202.0, 0.0)
    """
    steps = dict.fromkeys(costs, 0)
    scores = dict.fromkeys(costs, 0)
    for (arm, _), count in left.items():
        steps[arm] += count
        scores[arm] += count > 0
    return Plan(
        budget=60 * config.budget_minutes,
        costs=costs,
        steps=steps,
        scores=scores,
        seeds=config.seeds,
        each=sum(config.steps * cost.step + cost.score for cost in costs.values()),
    )
