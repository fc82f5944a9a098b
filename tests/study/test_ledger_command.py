"""`lowprec ledger` as a person meets it: what it prints, writes and refuses."""

import csv
from pathlib import Path

import numpy as np
import pytest

import lowprec as lp
from lowprec.cli import run
from lowprec.study.ledger_rows import captured_operands
from lowprec.study.ledger_terms import TERMS


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A file of one layer's operands without its output's gradient."""
    rng = np.random.default_rng(7)
    path = tmp_path / "dump.npz"
    tensors = {"fc.x": (16, 64), "fc.w": (64, 8)}
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in tensors.items()}
    np.savez(path, allow_pickle=False, **arrays)
    return path


def test_tables_and_csv(dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "terms.csv"
    assert run(["ledger", "--operands", str(dump), "--recipes", "mxfp4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "recipe:mxfp4 on engine:native, fc fprop, M, K, N = 16, 64, 8" in printed
    assert "the terms of 128 outputs sum to their errors exactly" in printed
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["term"] for row in rows] == [*TERMS, "total"]
    tensors = np.load(dump)
    found = lp.ledger(tensors["fc.x"], tensors["fc.w"], "mxfp4")
    for row in rows:
        term = found[row["term"]]
        assert (float(row["part"]), float(row["energy"])) == (term.part, term.energy)
        assert (row["term"] in printed) == (term.energy > 0 or row["term"] == "total")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--role", "dgrad"], "no layer has the product dgrad; those with some are fc (fprop)"),
        (["--layer", "fd"], "no layer fd has the product fprop"),
        (["--out", "nowhere/terms.csv"], "nowhere is not a directory"),
        (["--recipes", "mxfp5"], "mxfp5"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ledger", "--operands", str(dump), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_file_without_layers_names_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dump.npz"
    x = np.ones((4, 4), np.float32)
    np.savez(path, allow_pickle=False, **{"fc.input": x, "fc.weight": x})
    assert run(["ledger", "--operands", str(path)]) == 1
    assert "has `fc.input`, `fc.weight` but no layer" in capsys.readouterr().err


def test_an_attribute_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'lowprec' has no attribute 'ledgers'"):
        lp.ledgers  # type: ignore[attr-defined] - what is asked for  # noqa: B018 - looked up, not used


@pytest.mark.slow
def test_captured_operands_are_those_of_the_comparison() -> None:
    layers = captured_operands()
    down = next(x for x in layers if x.layer == "layers.0.mlp.down")
    assert len(layers) == 29 and down.roles == ("fprop", "dgrad", "wgrad")
    assert down.x is not None and down.x.shape[0] == 2 * 512
    assert np.abs(down.x.astype(np.float32)).max() > 0
