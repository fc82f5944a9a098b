"""The explorer's formats are the catalogue's, and its script rounds as the exact oracle does."""

import itertools
import json
import math
import random
import shutil
import subprocess
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from lowprec.numerics import get_format, oracle
from lowprec.numerics.format import Format
from lowprec.numerics.rounding import OVERFLOWS
from lowprec.report import explorer

SCRIPT = files("lowprec.report").joinpath("templates", "rounding.js").read_text("utf-8")
NODE = shutil.which("node")
MOST = 24
"""Values of a format that inputs are drawn around."""


def literal(x: float) -> str:
    """A float in JavaScript."""
    if math.isnan(x):
        return "NaN"
    return repr(x).replace("inf", "Infinity")


def inputs(fmt: Format) -> list[float]:
    """Values, ties, what lies next to both, and what lies beyond the ends."""
    draw = random.Random(fmt.name)
    found = explorer.runs(fmt)
    places = {
        (run.value + place * run.step, run.value + (place + 1) * run.step)
        for run in (found[0], found[-1], *draw.choices(found, k=MOST))
        for place in {0, run.length - 1, draw.randrange(run.length)}
    }
    values: list[float] = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e300, -1e300, 5e-324, -0.3]
    for low, high in sorted(places):
        middle = (low + high) / 2
        for x in (low, middle):
            values += [x, math.nextafter(x, -math.inf), math.nextafter(x, math.inf)]
        values.append(low + (high - low) * draw.random())
    for end in (fmt.min, fmt.max, -fmt.max):
        values += [end, 1.03 * end, 1.3 * end, 2 * end]
    return values


def run_node(text: str) -> Any:
    if NODE is None:
        pytest.skip("node is not installed: the explorer's script is not run")
    done = subprocess.run([NODE, "-"], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [x for x in explorer.names() if get_format(x).bits <= 16])
def test_runs_hold_every_value_under_its_code(name: str) -> None:
    fmt = get_format(name)
    codes = np.concatenate(
        [run.code + run.code_step * np.arange(run.length) for run in explorer.runs(fmt)]
    )
    values = np.concatenate(
        [run.value + run.step * np.arange(run.length) for run in explorer.runs(fmt)]
    )
    assert fmt.values is not None
    np.testing.assert_array_equal(fmt.values[codes], values)
    assert (np.diff(values) > 0).all() and len(set(codes)) == len(codes)
    # The codes that are left are -0, Inf and NaN, or no cast gives them.
    for code in sorted(set(range(1 << fmt.bits)) - set(codes.tolist()))[:300]:
        x = fmt.values[code]
        given = oracle.encode(float(x), fmt, rounding="nearest_even", overflow="nonsaturating")
        assert x == 0 or not math.isfinite(x) or given != code, hex(code)


def test_float32_is_there_in_runs() -> None:
    fmt = get_format("float32")
    found = explorer.runs(fmt)
    assert sum(run.length for run in found) == 2 * 255 * 2**23 - 1
    for run in random.Random(0).sample(found, 40):
        place = run.length // 3
        value = np.float32(run.value + place * run.step)
        assert int(value.view(np.uint32)) == run.code + place * run.code_step
    for before, run in itertools.pairwise(found):
        assert before.value + (before.length - 1) * before.step < run.value


def test_the_json_is_whole_and_safe_in_a_page() -> None:
    text = explorer.formats_json()
    data = json.loads(text)
    assert "<" not in text and text == explorer.formats_json()
    assert [fmt["name"] for fmt in data["formats"]] == list(explorer.names())
    assert data["first"] in explorer.names() and len(data["modes"]) == 7
    assert all(fmt["source"] for fmt in data["formats"])


def test_the_script_gives_the_codes_of_the_oracle() -> None:
    """Every format, mode and policy."""
    asked = {name: inputs(get_format(name)) for name in explorer.names()}
    cases = ",".join(
        f"{json.dumps(name)}:[{','.join(map(literal, values))}]" for name, values in asked.items()
    )
    found = run_node(
        f"{SCRIPT}\nconst data = {explorer.formats_json()}; const cases = {{{cases}}};"
        f"const policies = {json.dumps(OVERFLOWS)};"
        "console.log(JSON.stringify(data.formats.map((format) => policies.map((policy) =>"
        " data.modes.map((mode) => cases[format.name].map((x) =>"
        " treated(format, data.modes, x, mode, policy).code))))));"
    )
    compared = 0
    for (name, values), codes in zip(asked.items(), found, strict=True):
        # A third of the inputs for each way, in turn.
        for turn, (policy, mode) in enumerate(itertools.product(range(3), range(7))):
            for place in range(turn % 3, len(values), 3):
                args = {"rounding": explorer.MODES[mode], "overflow": OVERFLOWS[policy]}
                wanted = oracle.encode(values[place], get_format(name), **args)  # type: ignore[arg-type] - names of modes
                assert codes[policy][mode][place] == wanted, (name, values[place], args)
                compared += 1
    assert compared > 50_000


def test_the_script_says_what_codes_are_worth() -> None:
    asked = {name: get_format(name) for name in ("float8_e4m3fn", "float8_e5m2", "nf4", "int4")}
    found = run_node(
        f"{SCRIPT}\nconst data = {explorer.formats_json()};"
        f"const names = {json.dumps(list(asked))};"
        "console.log(JSON.stringify(names.map((name) => { const format ="
        " data.formats.find((one) => one.name === name); return [...Array(2 ** format.bits).keys()]"
        ".map((code) => String(valueOfCode(format, code))); })));"
    )
    for (_, fmt), values in zip(asked.items(), found, strict=True):
        np.testing.assert_array_equal(np.array(values, np.float64), fmt.values)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("0.3", 0.3),
        (" -1.5e-3", -0.0015),
        ("1/3", 1 / 3),
        ("2^-9", 2.0**-9),
        ("-2^3", -8.0),
        (".5", 0.5),
        ("\u22127", -7.0),
    ],
)
def test_numbers_are_read_as_they_are_typed(typed: str, read: float) -> None:
    assert (
        run_node(f"{SCRIPT}\nconsole.log(JSON.stringify(numberOf({json.dumps(typed)})));") == read
    )


def test_what_is_no_number_is_none() -> None:
    words = ["", "abc", "1/2/3", "0x10", "1,5", "--1", "1e", "2^x"]
    found = run_node(f"{SCRIPT}\nconsole.log(JSON.stringify({json.dumps(words)}.map(numberOf)));")
    assert found == [None] * len(words)
    special = ["-0", "inf", "-Infinity", "NaN"]
    said = run_node(
        f"{SCRIPT}\nconsole.log(JSON.stringify({json.dumps(special)}.map(numberOf)"
        ".map((x) => Object.is(x, -0) ? '-0' : String(x))));"
    )
    assert said == ["-0", "Infinity", "-Infinity", "NaN"]
