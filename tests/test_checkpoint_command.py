"""`lowprec capture` and `lowprec evaluate` on small random checkpoints from a temporary folder."""

import csv
import json
from pathlib import Path

import pytest

from lowprec.cli import run
from lowprec.models.card_files import read_cards
from lowprec.models.key_values import load_key_values
from lowprec.models.operands import load_layers
from tests.models.checkpoints.folders import copied
from tests.models.checkpoints.tokens import CHARACTERS, write_tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = copied("qwen3", tmp_path)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(CHARACTERS)
    return path


def test_capture_writes_operands_caches_and_cards(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--layers", "layers.1.mlp.*", "head", "--tokens", "20", "--out", str(out)]
    assert run(["capture", "--checkpoint", str(checkpoint), "--text", str(text), *options]) == 0
    assert capsys.readouterr().out.split() == [str(out / "cards.json")]
    layers, lone = load_layers(out / "layers.1.safetensors")
    assert [x.layer for x in layers] == [f"layers.1.mlp.{x}" for x in ("down", "gate", "up")]
    assert lone == [] and not (out / "layers.0.safetensors").exists()
    assert layers[0].product("fprop")[0].shape == (20, 48)
    assert load_key_values(out / "layers.0.kv.safetensors")[0].k.shape == (1, 2, 20, 16)
    cards = read_cards(out / "cards.json")
    assert len(cards) == 8 and cards["head.w"].shape == (32, 96)
    shared = (out / "cards.json").read_text()
    assert str(tmp_path) not in shared and len(json.loads(shared)["key_values"]) == 2

    drawn = tmp_path / "drawn"
    cards_file = str(out / "cards.json")
    assert run(["capture", "--cards", cards_file, "--tokens", "30", "--out", str(drawn)]) == 0
    again, _ = load_layers(drawn / "layers.1.safetensors")
    assert [x.layer for x in again] == [x.layer for x in layers]
    assert again[0].product("fprop")[0].shape == (30, 48)


def test_cards_only(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--cards-only", "--tokens", "9", "--out", str(out)]
    assert run(["capture", "--checkpoint", str(checkpoint), "--text", str(text), *options]) == 0
    assert [path.name for path in out.iterdir()] == ["cards.json"]


def test_evaluate_prints_a_table_and_writes_its_figures(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    given = ["--checkpoint", str(checkpoint), "--text", str(text), "--out", str(out)]
    options = ["--recipe", "mxfp4", "--sensitivity", "layers", "--context", "16", "--windows", "3"]
    assert run(["evaluate", *given, *options]) == 0
    shown = capsys.readouterr().out
    assert "Qwen3ForCausalLM on 45 tokens, 45 bytes, in 3 windows" in shown
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    layers = ["all", "all", "layers.0", "layers.1"]
    assert [row["layer"] for row in rows] == layers
    assert float(rows[1]["kl_mean"]) > 0 and float(rows[1]["low"]) <= float(rows[1]["high"])


@pytest.mark.slow
def test_sensitivities_feed_advice_which_is_evaluated(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(checkpoint), "--text", str(text)]
    sizes = ["--context", "16", "--windows", "3"]
    layers = ["--layers", "layers.1.mlp.*"]
    rows, captured, advice = (tmp_path / x for x in ("rows.csv", "captured", "advice"))
    tried = ["--recipe", "mxfp4", "--sensitivity", "linear", "--out", str(rows)]
    assert run(["evaluate", *given, *sizes, *layers, *tried]) == 0
    assert run(["capture", *given, *layers, "--tokens", "40", "--out", str(captured)]) == 0
    asked = ["--recipes", "mxfp4", "mxfp8", "--no-combinations", "--out", str(advice)]
    spread = ["--sensitivity", str(rows), "--budget-bits", "6"]
    assert run(["advise", "--operands", str(captured), *asked, *spread]) == 0
    assert "spread by rows.csv: " in capsys.readouterr().out
    assert len(list(advice.glob("advice_layers.1.mlp.*.toml"))) == 3
    out = tmp_path / "again.csv"
    options = ["--advice", str(advice), "--out", str(out)]
    assert run(["evaluate", *given, *sizes, *options]) == 0
    with out.open(newline="") as file:
        mixed = list(csv.DictReader(file))[1]
    assert mixed["what"] == "advice:advice" and float(mixed["kl_mean"]) > 0
    both = ["--min-sqnr", "3"]
    assert run(["advise", "--operands", str(captured), *spread, *both]) == 1
    assert "spreads `--budget-bits` over layers, without" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["capture"], "takes --checkpoint and --text, or --cards"),
        (["capture", "--text", "t", "--cards", "c"], "or --cards, not both"),
        (["evaluate", "--checkpoint", "c", "--text", "t"], "takes --recipe, --advice, --kv"),
    ],
)
def test_what_is_missing_is_said(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_malformed_checkpoint_is_one_line(
    checkpoint: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = sorted(checkpoint.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    options = ["--checkpoint", str(checkpoint), "--text", str(text), "--out", str(tmp_path / "o")]
    assert run(["capture", *options]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(shard) in error and "is cut short: tensor" in error
    assert not (tmp_path / "o").exists()
