"""experiments/prove.py goes on where it stopped, and keeps nothing that rests on other code."""

import ast
import json
from pathlib import Path

import pytest

from tests.helpers import load_experiment

prove = load_experiment("prove")
ROWS = [
    {"format": name, "rounding": way, "inputs": 2, "mismatches": 0, "seconds": 0.5}
    for name in ("one", "two")
    for way in ("up", "down")
]


def test_recorded_rows_are_not_proven_again(tmp_path: Path) -> None:
    path = tmp_path / "formats.csv"
    prove.write(path, ROWS)
    # `len` would fail in the pool: rows are no numbers.
    rows = prove.run(len, ["two", "one"], path, 1)
    assert [(row["format"], row["rounding"]) for row in rows] == [
        ("two", "up"),
        ("two", "down"),
        ("one", "up"),
        ("one", "down"),
    ]
    assert not any(map(prove.is_wrong, rows))


def test_rows_of_other_formats_stay(tmp_path: Path) -> None:
    path = tmp_path / "formats.csv"
    prove.write(path, ROWS)
    new = [{**ROWS[0], "format": "three", "mismatches": 5}, {**ROWS[0], "format": "two"}]
    prove.run(ast.literal_eval, [repr([row]) for row in new], path, 1)
    kept = prove.recorded(path)
    assert sorted(kept) == ["one", "three", "two"]
    assert len(kept["one"]) == 2 and len(kept["two"]) == 1
    assert prove.is_wrong(kept["three"][0]) and not prove.is_wrong(kept["one"][0])
    assert [x.name for x in tmp_path.iterdir()] == ["formats.csv"]


def test_a_wrong_width_stays_wrong(tmp_path: Path) -> None:
    path = tmp_path / "leading_bits.csv"
    rows = [{"mantissa_bits": m, "format": "x", "holds": m != 1} for m in range(3)]
    prove.write(path, rows)
    assert [prove.is_wrong(prove.recorded(path)[str(m)][0]) for m in range(3)] == [0, 1, 0]


@pytest.mark.parametrize("place", ["lowprec/study/steps.py", "experiments/prove.py"])
def test_rows_that_rest_on_other_code_are_removed(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in prove.SOURCES:
        copy = tmp_path / source
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (prove.ROOT / source).is_dir():
            copy.mkdir()
        else:
            copy.write_bytes((prove.ROOT / source).read_bytes())
    monkeypatch.setattr(prove, "ROOT", tmp_path)
    prove.begin(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "date": "then"}))
    prove.write(tmp_path / "formats.csv", ROWS)
    prove.begin(tmp_path)
    assert (tmp_path / "formats.csv").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["date"] == "then"
    (tmp_path / place).write_text("pass")
    prove.begin(tmp_path)
    assert not (tmp_path / "formats.csv").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["date"] == manifest["date"]


def test_other_packages_are_other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prove.source()
    monkeypatch.setattr(prove, "version", lambda name: "0")
    assert prove.source() != before
