"""A store: one writer, every point once, and a full disk that loses nothing."""

import sqlite3
from pathlib import Path

import pytest

from lowprec.study.point_rows import Record
from lowprec.study.store import Store

OF = {"spec": {"m": 4}, "inputs": {"recipe": "r"}, "code": {"lowprec": "c"}}


def done(key: str, **row) -> Record:
    return Record(key=key, status="done", row=row or {"sqnr_db": 1.5})


def failed(key: str) -> Record:
    return Record(key=key, status="failed", error="ValueError: no")


def test_a_point_that_is_done_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store.writing(path) as store:
        store.add(failed("a"), OF)
        assert store.states() == {"a": "failed"}
        store.add(failed("a"), OF)
        store.add(done("a", sqnr_db=2.0), OF)
        store.add(done("a", sqnr_db=3.0), OF)
        store.add(failed("a"), OF)
        assert store.states(["a", "b"]) == {"a": "done"}
    with Store.reading(path) as store:
        rows = list(store.rows())
    assert rows == [
        {"key": "a", "status": "done", "error": "", "m": 4, "sqnr_db": 2.0, "code": "c"}
    ]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT attempts FROM points").fetchone() == (3,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_rows_come_by_key_and_keep_what_is_not_finite(tmp_path: Path) -> None:
    with Store.writing(tmp_path / "s.sqlite") as store:
        for key in ("c", "a", "b"):
            store.add(done(key, sqnr_db=float("inf"), gain=float("nan")), OF)
        rows = list(store.rows(["c", "a"]))
        assert [row["key"] for row in rows] == ["a", "c"]
        assert rows[0]["sqnr_db"] == float("inf") and rows[0]["gain"] != rows[0]["gain"]


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store.writing(path) as store:
        with pytest.raises(BlockingIOError, match=r"being written by process \d+; wait"):
            Store.writing(path)
        store.add(done("a"), OF)
        with Store.reading(path) as other:
            assert other.states() == {"a": "done"}
            with pytest.raises(OSError, match="could not be stored"):
                other.add(done("b"), OF)
    with Store.writing(path) as store:
        assert store.states() == {"a": "done"}


def test_a_file_has_one_writer_under_all_its_names(tmp_path: Path) -> None:
    (tmp_path / "other.sqlite").symlink_to(tmp_path / "s.sqlite")
    with Store.writing(tmp_path / "s.sqlite"), pytest.raises(BlockingIOError):
        Store.writing(tmp_path / "other.sqlite")


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store.writing(path) as store:
        for count in range(100):
            store.add(done(f"{count:04}", text="x" * 500), OF)
    page = 4096
    with path.open("r+b") as file:
        file.seek(2 * page)
        file.write(b"\xff" * page)
    with Store.reading(path) as store, pytest.raises(ValueError, match="or damaged"):
        list(store.rows())


def test_a_full_disk_is_said_and_keeps_what_was_stored(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    with Store.writing(path) as store:
        store._connection.execute("PRAGMA max_page_count = 12")
        count = 0
        with pytest.raises(OSError, match=r"s.sqlite: database or disk is full; what was stored"):
            for count in range(1000):
                store.add(done(f"{count:04}", text="x" * 500), OF)
        assert count > 10
    with Store.writing(path) as store:
        assert list(store.states()) == [f"{i:04}" for i in range(count)]
        store.add(done("more"), OF)
        assert store.states(["more"]) == {"more": "done"}


def test_files_that_are_no_stores_are_refused(tmp_path: Path) -> None:
    text, other, later = (tmp_path / f"{name}.sqlite" for name in ("text", "other", "later"))
    text.write_text("no database, and longer than the header of one " * 10)
    Store.writing(later).close()
    for path, change in ((other, "CREATE TABLE notes (x)"), (later, "PRAGMA user_version = 99")):
        with sqlite3.connect(path) as connection:
            connection.execute(change)
        connection.close()
    for opened in (Store.writing, Store.reading):
        with pytest.raises(ValueError, match=r"text.sqlite is no store of a study"):
            opened(text)
        with pytest.raises(ValueError, match="a database of another program"):
            opened(other)
        with pytest.raises(ValueError, match="written by a later lowprec"):
            opened(later)
    with pytest.raises(ValueError, match="there is no store"):
        Store.reading(tmp_path / "absent.sqlite")
    with pytest.raises(ValueError, match="is not a directory"):
        Store.writing(tmp_path / "absent" / "s.sqlite")
    # What was refused is not locked.
    text.unlink()
    Store.writing(text).close()
