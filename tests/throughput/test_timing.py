"""Calls in turn, their ratios and their table; nothing here depends on how long a call takes."""

from pathlib import Path

import jax.numpy as jnp
import pytest

import lowprec as lp
from lowprec.throughput import compiled, in_turn, ratio, write_table


def test_a_compiled_call_gives_the_result() -> None:
    for options in (None, lp.compiler_options()):
        program = compiled(lambda x, y: x @ y, jnp.ones((2, 3)), jnp.ones((3, 2)), options=options)
        assert program.call().tolist() == [[3, 3], [3, 3]]
        assert program.seconds > 0 and program.temporary_bytes >= 0


def test_calls_take_turns() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = in_turn(calls, 2, {"b": 2})
    assert order == ["a", "b", "b", "a", "b", "b"]
    assert all(len(seconds) == 2 and min(seconds) >= 0 for seconds in times.values())
    with pytest.raises(ValueError, match="`rounds` = 0; use 1 or more"):
        in_turn(calls, 0)


def test_a_ratio_is_of_the_same_rounds() -> None:
    assert ratio([1, 20, 300], [1, 10, 100]) == (2, 1.5, 2.5)
    with pytest.raises(ValueError, match="`numerator` has 2 rounds, `denominator` has 1"):
        ratio([1, 2], [1])


def test_a_table_has_four_digits(tmp_path: Path) -> None:
    path = tmp_path / "made" / "table.csv"
    write_table(path, ("name", "seconds", "bytes"), [("a", 1 / 3, 12345), ("b", 2.0, 0)])
    assert path.read_text() == "name,seconds,bytes\na,0.3333,12345\nb,2,0\n"
