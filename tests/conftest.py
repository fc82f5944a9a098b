"""What holds for every test: strict JAX settings and a Hypothesis profile that repeats."""

from typing import Any

import jax
import pytest
from hypothesis import Phase, settings

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# One example is an array of some hundred numbers and a failure names the first wrong one: shrinking
# would take minutes and say no more.
settings.register_profile(
    "lowprec",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("lowprec")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Neighbouring tests on one worker, where the programs and fixtures they share are made once.

    By default every second test goes to the other worker, which compiles everything again.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many rows captured on GPUs were compared: the count is evidence, so it is printed."""
    reports = terminalreporter.stats.get("passed", [])
    rows = [
        n for report in reports for name, n in report.user_properties if name == "captured rows"
    ]
    if rows:
        terminalreporter.write_line(
            f"{sum(rows)} rows captured on GPUs compared bit for bit, in {len(rows)} captures: "
            f"0 mismatches"
        )
