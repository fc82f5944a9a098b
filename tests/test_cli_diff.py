"""`lowprec diff` as a person meets it: tables, files, clear refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lowprec import cli_diff
from lowprec.cli import run
from tests.models.checkpoints.folders import copied
from tests.models.checkpoints.tokens import CHARACTERS, write_tokenizer
from tests.study.test_diff import PLAIN, subject_of


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model where the repository's would be read."""
    monkeypatch.setattr(cli_diff, "small_subject", lambda model, *, count: subject_of())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("tiny")
def test_two_orders_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "diff"
    assert run(["diff", PLAIN, f"{PLAIN} order=split_k.2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in (f"B {PLAIN} order=split_k.2", "layers.0.attention.q", "drawn from B", "logits"):
        assert text in printed
    assert str(out) in printed.splitlines()
    (row,) = rows(out / "pairs.csv")
    assert row["first_layer"] == "0" and float(row["kl_mean"]) > 0 and row["a"] == PLAIN
    assert {x["tokens"] for x in rows(out / "sequences.csv")} == {"text", "drawn"}
    assert [x["layer"] for x in rows(out / "layers.csv")] == ["layers.0", "layers.1", "logits"]
    record = json.loads((out / "manifest.json").read_text())
    assert record["command"].startswith("lowprec diff") and record["settings"]["a"] == PLAIN
    assert "<svg" in (out / "figures" / "diff_apart.svg").read_text()


@pytest.mark.usefixtures("tiny")
def test_equal_sides_have_no_layer_that_differs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", "bf16", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert "none: the same bits" in printed and "0: 0.00 % (0.00 % to 0.00 %)" in printed


def test_a_checkpoint_and_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied("qwen3", tmp_path)
    write_tokenizer(folder)
    text = tmp_path / "text.txt"
    text.write_text(CHARACTERS)
    given: list[Any] = ["--checkpoint", folder, "--text", text, "--context", 16, "--windows", 3]
    assert run(["diff", "bf16", "mxfp4", *map(str, given)]) == 0
    printed = capsys.readouterr().out
    assert "Qwen3ForCausalLM, 24 tokens of 3 windows" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bf16", "deepseek"], "`B` = 'deepseek': no recipe is named 'deepseek'"),
        (["bf16 kv", "bf16"], "`A` = 'bf16 kv': 'kv': write kv=VALUE"),
        (["bf16", "bf16", "--windows", "1"], "`--windows` = 1 must be at least 2"),
        (["bf16", "bf16", "--kept", "0"], "`--kept` = 0.0 must be above 0"),
        (["bf16", "bf16", "--text", "a.txt"], "`--checkpoint` and `--text` go together"),
        (["bf16", "bf16", "--context", "9"], "`--context` is of --text"),
        (["bf16", "bf16", "--out", "no/such/folder"], "no/such is not a directory"),
        (["bf16", "bf16", "--checkpoint", "absent", "--text", "a.txt"], "absent/config.json"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["diff", *arguments]) == 1
    shown = capsys.readouterr()
    err = shown.err.strip()
    assert message in err and "\n" not in err and "Traceback" not in err and not shown.out


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(["diff", "--help"])
    assert "lowprec diff deepseek_v3" in capsys.readouterr().out
