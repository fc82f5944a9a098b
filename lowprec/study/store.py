"""Where a study keeps its points: an SQLite file on a local disk, which one process writes.

A point is stored in one transaction, by a key that follows from everything it depends on. What a
killed process has stored is there for the next one; what it had not stored is computed again.
"""

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from lowprec.study.point_rows import Record, Status

APPLICATION, VERSION = 0x6C6F7770, 1
"""What SQLite's header says of a store: the letters `lowp`, and the version of the tables."""
_TABLE = """
CREATE TABLE IF NOT EXISTS points (
    key TEXT PRIMARY KEY NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    spec TEXT NOT NULL,
    inputs TEXT NOT NULL,
    code TEXT NOT NULL,
    row TEXT NOT NULL,
    error TEXT NOT NULL,
    seconds REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 1
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO points (key, status, spec, inputs, code, row, error, seconds)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
    status = excluded.status, row = excluded.row, error = excluded.error,
    seconds = excluded.seconds, attempts = points.attempts + 1
WHERE points.status = 'failed'
"""


class Store:
    """An open store; a context manager.

    Make one with `Store.writing` or `Store.reading`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self._path, self._connection, self._lock = path, connection, lock

    @classmethod
    def writing(cls, path: str | Path) -> Self:
        """Opens a store for the one process that writes, and makes the file where there is none.

        Raises:
          BlockingIOError: another process writes this store.
          ValueError: the file is something else, or its disk cannot share memory between processes.
          OSError: it cannot be made or written.
        """
        # Whatever names lead to a file, its lock is one.
        path = Path(path).resolve()
        if not path.parent.is_dir():
            raise ValueError(f"cannot make the store {path}: {path.parent} is not a directory")
        with _readable_errors(path), contextlib.ExitStack() as undo:
            lock = _locked(path)
            undo.callback(os.close, lock)
            connection = sqlite3.connect(path, isolation_level=None)
            undo.callback(connection.close)
            _prepare(path, connection)
            undo.pop_all()
        return cls(path, connection, lock)

    @classmethod
    def reading(cls, path: str | Path) -> Self:
        """Opens a store to look at, also while another process writes it.

        Raises:
          ValueError: there is no such store, or the file is something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"there is no store {path}; `lowprec study run` makes it")
        with _readable_errors(path), contextlib.ExitStack() as undo:
            address = f"file:{quote(str(path.resolve()))}?mode=ro"
            connection = sqlite3.connect(address, uri=True, isolation_level=None)
            undo.callback(connection.close)
            _check(path, connection)
            undo.pop_all()
        return cls(path, connection, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; then another process may write it."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def states(self, keys: Iterable[str] | None = None) -> dict[str, Status]:
        """Which points are stored, and whether they failed; of some keys, or of all.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is damaged.
        """
        with _readable_errors(self._path):
            found = dict(self._connection.execute("SELECT key, status FROM points"))
        return found if keys is None else {key: found[key] for key in keys if key in found}

    def add(self, record: Record, of: Mapping[str, Any]) -> None:
        """Stores a point in a transaction of its own; one that is done is never replaced.

        Args:
          record: what was found.
          of: the point's `spec`, `inputs` and `code`.

        Raises:
          OSError: it cannot be written, as on a full disk; what was stored before is kept.
        """
        texts = (json.dumps(x, sort_keys=True) for x in (of["spec"], of["inputs"], of["code"]))
        values = (record.key, record.status, *texts, json.dumps(record.row, sort_keys=True))
        try:
            self._connection.execute(_ADD, (*values, record.error, record.seconds))
        except sqlite3.Error as error:
            raise OSError(
                f"a point could not be stored in {self._path}: {error}; what was stored before is "
                f"kept: make room on its disk and run the study again"
            ) from error

    def rows(self, keys: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        """The stored points by key: `key`, `status`, `error`, then spec and row in columns of each.

        Args:
          keys: of some points; None gives all, of every version of the code.

        Raises:
          OSError: the file cannot be read.
          ValueError: it is damaged.
        """
        wanted = None if keys is None else set(keys)
        query = "SELECT key, status, error, spec, code, row FROM points ORDER BY key"
        with _readable_errors(self._path):
            for key, status, error, spec, code, row in self._connection.execute(query):
                if wanted is None or key in wanted:
                    found = {"key": key, "status": status, "error": error, **json.loads(spec)}
                    yield found | json.loads(row) | {"code": json.loads(code)["lowprec"]}


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Checks or makes the table; a crash leaves either none of it or all."""
    if path.stat().st_size:
        _check(path, connection)
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise ValueError(
            f"the disk of {path} has no write-ahead log (SQLite says {mode!r}); put the store on a "
            f"local one"
        )
    # A killed process loses nothing; after a power cut the last points are computed again.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_TABLE)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _check(path: Path, connection: sqlite3.Connection) -> None:
    found = [
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    ]
    if found[0] not in (0, APPLICATION) or (found[0] == 0 and _tables(connection)):
        raise ValueError(f"{path} is a database of another program; name another --store")
    if found[1] > VERSION:
        raise ValueError(f"{path} was written by a later lowprec; name another --store")


def _tables(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]


@contextlib.contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """SQLite's errors while a file is opened or read, as those that a person is told."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"cannot open or read the store {path}: {error}") from error
    except sqlite3.Error as error:
        raise ValueError(f"{path} is no store of a study, or damaged: {error}") from error


def _locked(path: Path) -> int:
    """The lock of whoever writes, which ends with the process, however it ends."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        raise BlockingIOError(
            f"the store {path} is being written by process {other or 'unknown'}; wait until it "
            f"ends, or name another --store"
        ) from None
    # Who holds it is for people alone, and a full disk has no room for it.
    with contextlib.suppress(OSError):
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
