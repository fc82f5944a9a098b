"""The corpus: the same files and the same split everywhere, and windows that lose no byte."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lowprec.models import corpus

STORED = Path(__file__).parents[2] / "experiments" / "checkpoints" / "held_out.jsonl"


def library(root: Path) -> Path:
    """A directory with files to read and files to leave out."""
    for name, content in {
        "b.py": b"x = 1\n",
        "package/a.py": "name = 'é'\n".encode(),
        "package/latin.py": b"name = '\xe9'\n",
        "empty.py": b"",
        "notes.txt": b"no Python",
        "site-packages/other.py": b"x = 2\n",
        "package/__pycache__/c.py": b"x = 3\n",
        "_sysconfigdata__linux.py": b"prefix = '/somewhere'\n",
        "config-3.11-linux/python-config.py": b"prefix = '/somewhere'\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def files(count: int, size: int) -> list[tuple[str, bytes]]:
    line = b"0123456789abcdef" * 3 + b"\n"
    return [(f"module_{n}.py", (line * (size // len(line) + 1))[:size]) for n in range(count)]


def test_standard_library_keeps_utf8_sources_in_order(tmp_path: Path) -> None:
    found = corpus.standard_library(library(tmp_path))
    assert found == [("b.py", b"x = 1\n"), ("package/a.py", "name = 'é'\n".encode())]


def test_the_running_python_has_a_library() -> None:
    names = [name for name, _ in corpus.standard_library()]
    assert "argparse.py" in names and len(names) > 500
    assert names == sorted(set(names))


def test_a_directory_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none below"):
        corpus.standard_library(tmp_path)


def test_one_file_in_ten_is_held_out_by_name_alone() -> None:
    names = [f"module_{n}.py" for n in range(3000)]
    held_out = [name for name in names if corpus.is_held_out(name)]
    # Binomial: 300 with a standard deviation of 16.
    assert 235 < len(held_out) < 365
    first = hashlib.sha256(held_out[0].encode()).digest()
    assert int.from_bytes(first[:8], "big") % 10 == 0
    training, kept = corpus.split([(name, b"x") for name in names])
    assert [name for name, _ in kept] == held_out
    assert len(training) + len(kept) == 3000


def test_the_slice_is_deterministic_whole_lines_and_balanced() -> None:
    pool = files(2000, 5000)
    limits = {"total_bytes": 100_000, "document_bytes": 2000, "smallest_bytes": 100}
    documents = corpus.select_held_out_slice(pool, **limits)
    assert documents == corpus.select_held_out_slice(pool[::-1], **limits)
    assert all(corpus.is_held_out(document.name) for document in documents)
    contents = dict(pool)
    for document in documents:
        content = contents[document.name]
        assert document.sha256 == hashlib.sha256(content).hexdigest()
        assert content.startswith(document.text) and document.text.endswith(b"\n")
        assert 1900 < len(document.text) <= 2000
    sizes = Counter[str]()
    for document in documents:
        sizes[document.part] += len(document.text)
    assert 98_000 < sum(sizes.values()) <= 100_000
    assert max(sizes.values()) - min(sizes.values()) <= 2000
    assert len({document.name for document in documents}) == len(documents)


def test_short_files_stay_whole_and_tiny_ones_out() -> None:
    documents = corpus.select_held_out_slice([*files(300, 1500), ("module_15.pyw", b"x")])
    assert {len(document.text) for document in documents} == {1500}


def test_a_line_beyond_the_limit_is_cut_between_characters() -> None:
    pool = [(name, "é".encode() * 400) for name, _ in files(300, 10)]
    documents = corpus.select_held_out_slice(pool, document_bytes=101, smallest_bytes=1)
    assert {document.text.decode() for document in documents} == {"é" * 50}


def test_too_few_held_out_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 3 held-out files of 1024 bytes.*got 0"):
        corpus.select_held_out_slice(files(30, 10))


def test_the_stored_slice_comes_back_by_part(tmp_path: Path) -> None:
    text = "a = 'é\u2028\\n'\r\n".encode()
    documents = [
        corpus.Document(name=f"{part}.py", sha256="0" * 64, part=part, text=text + part.encode())
        for part in corpus.PARTS
    ]
    path = tmp_path / "held_out.jsonl"
    corpus.save_held_out(path, documents)
    assert corpus.load_held_out(path) == [(d.name, d.text) for d in documents]
    assert corpus.load_held_out(path, "select") == [("select.py", text + b"select")]
    with pytest.raises(ValueError, match=r"`part` must be one of calibrate, select, report, got"):
        corpus.load_held_out(path, "test")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"name": "a.py"}', '{"name":"a","part":"x","text":1}']
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "held_out.jsonl"
    corpus.save_held_out(
        path, [corpus.Document(name="a.py", sha256="0", part="report", text=b"x = 1\n")]
    )
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"line 2 of .*held_out\.jsonl is not a held-out document"):
        corpus.load_held_out(path)


def test_every_byte_but_a_documents_first_is_a_target_once() -> None:
    random = np.random.default_rng(0)
    documents = [
        (f"{size}.py", random.integers(1, 256, size).astype(np.uint8).tobytes())
        for size in (1, 2, 5, 9, 10, 17, 18)
    ]
    cut = corpus.windows(documents, 9)
    assert cut.tokens.shape[1] == 9 and cut.mask.shape == (len(cut.tokens), 8)
    assert cut.document_count == 7
    for index, (_, text) in enumerate(documents):
        rows = cut.document == index
        targets = cut.tokens[rows][:, 1:][cut.mask[rows]].tobytes()
        assert targets == text[1:]
        assert rows.sum() == -(-(len(text) - 1) // 8)


def test_windows_refuse_what_holds_no_target() -> None:
    with pytest.raises(ValueError, match="`length` must be at least 2, got 1"):
        corpus.windows([("a.py", b"x = 1")], 1)
    with pytest.raises(ValueError, match="at least two bytes"):
        corpus.windows([("a.py", b"x"), ("b.py", b"")], 8)


def test_the_committed_slice_is_what_the_rules_say() -> None:
    if not STORED.is_file():
        pytest.skip("the held-out slice comes with the repository")
    documents = corpus.load_held_out(STORED)
    parts = [{name for name, _ in corpus.load_held_out(STORED, part)} for part in corpus.PARTS]
    assert len(documents) >= 40 and sum(map(len, parts)) == len(set().union(*parts))
    assert 240 * 1024 < sum(len(text) for _, text in documents) <= 256 * 1024
    assert all(corpus.is_held_out(name) for name, _ in documents)
    for line in STORED.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        whole = hashlib.sha256(record["text"].encode()).hexdigest()
        # Only a cut document differs from its file, and it is cut near the limit.
        assert whole == record["sha256"] or len(record["text"].encode()) > 7 * 1024
