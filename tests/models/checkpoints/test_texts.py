"""Windows of a text by a checkpoint's own tokenizer, and how many bytes each token stands for."""

import json
from pathlib import Path

import numpy as np
import pytest

from lowprec.models.checkpoints import open_checkpoint, read_text
from tests.models.checkpoints.reference import FIXTURES
from tests.models.checkpoints.tokens import CHARACTERS, SIZE, write_tokenizer

MODEL = open_checkpoint(FIXTURES / "llama").architecture


def written(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_bytes(text.encode())
    return path


def test_windows_follow_each_other_and_drop_what_is_left(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = written(tmp_path, CHARACTERS)
    found = read_text(tmp_path, path, MODEL, length=8, count=3)
    np.testing.assert_array_equal(found.tokens, np.arange(24).reshape(3, 8))
    assert (found.byte_counts == 1).all() and found.mask.all()
    assert len(read_text(tmp_path, path, MODEL, length=8, count=99).tokens) == len(CHARACTERS) // 8
    assert read_text(tmp_path, path, MODEL, length=999, count=9).tokens.shape == (1, MODEL.context)
    np.testing.assert_array_equal(found[1:].tokens, found.tokens[1:])


def test_what_the_tokenizer_adds_stands_in_every_window_and_counts_no_bytes(
    tmp_path: Path,
) -> None:
    write_tokenizer(tmp_path, begins=True)
    found = read_text(tmp_path, written(tmp_path, "abcdef"), MODEL, length=4, count=9)
    assert found.tokens.tolist() == [[SIZE - 1, 0, 1, 2], [SIZE - 1, 3, 4, 5]]
    assert found.byte_counts.tolist() == [[0, 1, 1, 1]] * 2
    assert found.mask.tolist() == [[False, True, True, True]] * 2


def test_a_tokenizer_that_cuts_or_fills_texts_does_neither(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    table = json.loads(path.read_text())
    table["truncation"] = {
        "max_length": 3,
        "stride": 0,
        "strategy": "LongestFirst",
        "direction": "Right",
    }
    table["padding"] = {
        "strategy": {"Fixed": 90},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    path.write_text(json.dumps(table))
    found = read_text(tmp_path, written(tmp_path, "abcdef"), MODEL, length=50, count=9)
    assert found.tokens.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_bytes_are_those_of_utf_8(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    found = read_text(tmp_path, written(tmp_path, "aé漢😀b"), MODEL, length=5, count=1)
    assert found.byte_counts.tolist() == [[1, 2, 3, 4, 1]]
    assert found.tokens.tolist() == [[0, SIZE - 2, SIZE - 2, SIZE - 2, 1]]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        read_text(tmp_path, written(tmp_path, "abc"), MODEL, length=4, count=1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: is no tokenizer"):
        read_text(tmp_path, written(tmp_path, "abc"), MODEL, length=4, count=1)
    write_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="has 1 tokens, and a window of 4 has room for 1"):
        read_text(tmp_path, written(tmp_path, "a"), MODEL, length=4, count=1)
    (tmp_path / "text.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_text(tmp_path, tmp_path / "text.txt", MODEL, length=4, count=1)


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lowprec.models.checkpoints.texts.tokenizers", None)
    with pytest.raises(ImportError, match=r"lowprec\[checkpoints\]"):
        read_text(tmp_path, written(tmp_path, "abc"), MODEL, length=4, count=1)
