"""`lowprec advise` as a person meets it: a table, recipes that work elsewhere, clear refusals."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import lowprec as lp
from lowprec.cli import run
from lowprec.gemm.recipe import Role
from lowprec.scaling.block import get_format_or_block
from lowprec.study.advise_candidates import combined
from lowprec.study.advise_files import write_recipes
from tests.helpers import assert_bits_equal

RECIPES = ("--recipes", "mxfp4", "mxfp8", "--no-combinations")


def tensors(tokens: int = 64) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"fc.x": (tokens, 64), "fc.w": (64, 8), "fc.dy": (tokens, 8), "table": (8, 64)}
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def dump(path: Path, found: dict[str, np.ndarray]) -> str:
    np.savez(path, allow_pickle=False, **found)
    return str(path)


def test_what_is_written_is_what_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out = tensors(), tmp_path / "advice"
    path = dump(tmp_path / "dump.npz", found)
    goal = ["--role", "fprop", "--budget-bits", "5", "--out", str(out)]
    assert run(["advise", "--operands", path, *RECIPES, *goal]) == 0
    printed = capsys.readouterr().out
    assert "fc     fprop  mxfp4   4.25" in printed and "best within 5 bits" in printed
    written = out / "advice_fc.toml"
    assert str(written) in printed and "# fprop: mxfp4, 4.25 bits" in written.read_text()
    with (out / "advice.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["recipe"] == "recipe:mxfp4" and 12 < float(row["sqnr_db"]) < 25
    x, w = found["fc.x"], found["fc.w"]
    assert_bits_equal(lp.gemm(x, w, str(written)), lp.gemm(x, w, "mxfp4"))
    assert_bits_equal(
        lp.gemm(found["fc.dy"], w.T, str(written), role="dgrad"),
        lp.gemm(found["fc.dy"], w.T, "bf16", role="dgrad"),
    )


def test_wgrad_counts_bits_over_all_tokens_and_says_what_it_contracts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = dump(tmp_path / "dump.npz", tensors(128)), tmp_path / "advice"
    goal = ["--role", "wgrad", "--min-sqnr", "20", "--no-combinations", "--out", str(out)]
    assert run(["advise", "--operands", path, "--recipes", "torchao_rowwise", *goal]) == 0
    assert "wgrad contracts 32 tokens at a time of the layer's 128: bits" in capsys.readouterr().out
    with (out / "advice.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (row["k"], row["depth"]) == ("32", "128")
    # A scale of 8 bits for each row of 128 codes of 8 bits, of which 32 were multiplied at a time.
    assert float(row["bits_per_element"]) == 8 + 8 / 128 and 20 < float(row["sqnr_db"]) < 40


@pytest.mark.slow
def test_compare_takes_what_is_written(tmp_path: Path) -> None:
    """A layer's recipe of three choices, one of which the catalogue has no blocks for."""
    found = tensors(128)
    path = dump(tmp_path / "dump.npz", found)
    block = dataclasses.replace(lp.get_block("mxfp4_even"), name="mine", tile=(1, 16))
    chosen: dict[Role, lp.Recipe] = {
        "fprop": combined(block, get_format_or_block("nvfp4")).in_role("fprop"),
        "dgrad": lp.get_recipe("deepseek_v3").in_role("dgrad"),
        "wgrad": lp.get_recipe("te_current").in_role("wgrad"),
    }
    [written] = write_recipes({"fc": chosen}, tmp_path / "advice", {})
    products = {
        "fprop": (found["fc.x"], found["fc.w"]),
        "dgrad": (found["fc.dy"], found["fc.w"].T),
        "wgrad": (found["fc.x"].T, found["fc.dy"]),
    }
    sqnr = {}
    for role, (a, b) in products.items():
        y = lp.gemm(a, b, str(written), role=role)  # type: ignore[arg-type] - a role
        assert_bits_equal(y, lp.gemm(a, b, chosen[role], role=role))  # type: ignore[index] - a role
        exact = a.astype(np.float64) @ b.astype(np.float64)
        sqnr[role] = lp.metrics.sqnr_db(np.asarray(y, np.float64), exact)
        assert 10 < sqnr[role] < 45
    out = tmp_path / "report"
    arguments = ["compare", "--operands", path, "--recipes", str(written), "--out", str(out)]
    assert run(arguments) == 0
    with (out / "products.csv").open() as file:
        rows = {row["role"]: row for row in csv.DictReader(file) if "advice" in row["recipe"]}
    assert {role: float(row["sqnr_db"]) for role, row in rows.items()} == sqnr


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["advise", *arguments]) == 1
    captured = capsys.readouterr()
    return captured.err + captured.out


def test_unusable_operands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tensors()
    found["fc.x"][3, 4] = np.nan
    path = dump(tmp_path / "nan.npz", found)
    assert "`fc.x` holds 1 NaN" in refused(["--operands", path], capsys)
    path = dump(tmp_path / "few.npz", tensors(100))
    said = refused(["--operands", path, "--role", "wgrad"], capsys)
    assert "100 tokens are too few" in said and "leave it out with --role" in said
    lone = dump(tmp_path / "lone.npz", {"fc.weight": found["fc.w"]})
    said = refused(["--operands", lone], capsys)
    assert "has `fc.weight` but no layer" in said and "LAYER.dy" in said
    layers = ["--operands", path, "--layers", "mlp.*"]
    assert "no layer mlp.*; its layers are fc" in refused(layers, capsys)


def test_a_mistyped_key_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tensors()
    found["fc.grad"] = found.pop("fc.dy")
    path = dump(tmp_path / "dump.npz", found)
    goal = ["--role", "fprop", "--budget-bits", "3"]
    assert run(["advise", "--operands", path, *RECIPES, *goal]) == 1
    said = capsys.readouterr().err
    assert "left out, of no layer: `fc.grad`, `table`; a layer's keys are LAYER.x" in said


def test_goals_and_places_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--operands", dump(tmp_path / "dump.npz", tensors(128))]
    assert "above 0" in refused([*given, "--budget-bits", "-1"], capsys)
    out = str(tmp_path / "no" / "where")
    assert "not a directory" in refused([*given, "--out", out], capsys)
    assert "even number" in refused([*given, "--groups", "3"], capsys)
    recipe = ["--recipes", "nvfp4_training"]
    said = refused([*given, *recipe], capsys)
    assert "rounds stochastically" in said and "compare" not in said


def test_nothing_satisfies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dump(tmp_path / "dump.npz", tensors())
    goal = ["--role", "fprop", "--budget-bits", "3", "--out", str(tmp_path / "advice")]
    said = refused(["--operands", path, *RECIPES, *goal], capsys)
    assert "no recipe is within 3 bits" in said and "so none is written" in said
    assert [x.name for x in (tmp_path / "advice").iterdir()] == ["advice.csv"]


def test_help_says_what_takes_no_part(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["advise", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Stochastic, prepared and delayed recipes take no part" in said
    assert "Example: lowprec advise" in said
    assert "In wgrad each group of tokens is a product of its own" in said
