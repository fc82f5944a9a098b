"""The text the small model reads: the source of Python's own standard library.

Every machine that runs Python has it, its licence allows redistribution, and a fixed hash rule
splits it the same way everywhere. The held-out slice is also stored beside the checkpoint, so that
a result does not depend on the reader's version of Python.
"""

import hashlib
import json
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PARTS = ("calibrate", "select", "report")
"""The document-disjoint parts of the held-out slice: fit on the first, choose on the second."""

# Written when Python is built; they name the builder's directories.
_GENERATED_PREFIXES = ("_sysconfigdata", "config-")
_EXCLUDED_DIRECTORIES = ("site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True, kw_only=True)
class Document:
    """One held-out file: `name` relative to the library, the hash of the whole file, its text."""

    name: str
    sha256: str
    part: str
    text: bytes


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Fixed-length windows over documents, for scoring.

    Attributes:
      tokens: (windows, length) uint8; padded with zeros after a document's end.
      mask: (windows, length - 1) bool; True where tokens[:, 1:] is a byte to be predicted.
      document: (windows,) int32, the index of the document each window comes from.
      document_count: how many documents there are.
    """

    tokens: np.ndarray
    mask: np.ndarray
    document: np.ndarray
    document_count: int


def standard_library(root: Path | None = None) -> list[tuple[str, bytes]]:
    """The `*.py` files below `root` as (relative POSIX name, content), sorted by name.

    Installed packages, files generated for one machine and files that are not UTF-8 are left out.

    Args:
      root: a directory; the running Python's standard library by default.

    Raises:
      ValueError: `root` holds no such file.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    files = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        parts = relative.parts
        if any(part in _EXCLUDED_DIRECTORIES for part in parts):
            continue
        if any(part.startswith(_GENERATED_PREFIXES) for part in parts):
            continue
        content = path.read_bytes()
        try:
            content.decode("utf-8")
        except UnicodeDecodeError:
            continue
        if content:
            files.append((relative.as_posix(), content))
    if not files:
        raise ValueError(f"`root` must hold Python source files, found none below {root}")
    return sorted(files)


def is_held_out(name: str) -> bool:
    """Whether the file of this relative name is kept from training: one in ten, by its hash.

    >>> [name for name in ("abc.py", "ast.py", "json/decoder.py") if is_held_out(name)]
    []
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 == 0


def split(files: Sequence[tuple[str, bytes]]) -> tuple[list[tuple[str, bytes]], ...]:
    """(training files, held-out files), each in the given order."""
    training = [file for file in files if not is_held_out(file[0])]
    return training, [file for file in files if is_held_out(file[0])]


def select_held_out_slice(
    files: Sequence[tuple[str, bytes]],
    *,
    total_bytes: int = 256 * 1024,
    document_bytes: int = 8 * 1024,
    smallest_bytes: int = 1024,
) -> list[Document]:
    """A deterministic slice of the held-out files, in three document-disjoint parts.

    Files are taken in the order of their names' hashes. A document is cut at `document_bytes`,
    after the last whole line, so that the slice has many documents; files below `smallest_bytes`
    say too little to score and are left out. Each document goes to the part with the fewest bytes
    so far, which makes the parts about equal.

    Args:
      files: (name, content) pairs, as `standard_library` returns them.
      total_bytes: stop before the slice grows past this.
      document_bytes: the most that one document contributes.
      smallest_bytes: the least that a file must have.

    Raises:
      ValueError: too few held-out files to give every part a document.
    """
    _, held_out = split(files)
    order = sorted(held_out, key=lambda file: hashlib.sha256(b"order:" + file[0].encode()).digest())
    sizes = dict.fromkeys(PARTS, 0)
    documents = []
    for name, content in order:
        if len(content) < smallest_bytes:
            continue
        text = _cut(content, document_bytes)
        if sum(sizes.values()) + len(text) > total_bytes:
            break
        part = min(PARTS, key=lambda candidate: sizes[candidate])
        sizes[part] += len(text)
        digest = hashlib.sha256(content).hexdigest()
        documents.append(Document(name=name, sha256=digest, part=part, text=text))
    if len(documents) < len(PARTS):
        raise ValueError(
            f"`files` must hold at least {len(PARTS)} held-out files of {smallest_bytes} bytes "
            f"within {total_bytes} bytes, got {len(documents)}"
        )
    return documents


def _cut(content: bytes, limit: int) -> bytes:
    if len(content) <= limit:
        return content
    end = content.rfind(b"\n", 0, limit) + 1
    # A line longer than the limit is cut between characters, not inside one.
    return content[:end] if end else content[:limit].decode("utf-8", "ignore").encode()


def save_held_out(path: Path, documents: Sequence[Document]) -> None:
    """Writes documents as JSON, one a line: name, sha256 of the original file, part, text."""
    lines = [
        json.dumps(
            {"name": d.name, "sha256": d.sha256, "part": d.part, "text": d.text.decode("utf-8")}
        )
        for d in documents
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_held_out(path: Path, part: str | None = None) -> list[tuple[str, bytes]]:
    """The (name, text) pairs of one part of a stored held-out slice, or of all of it.

    Args:
      path: a file that `save_held_out` wrote.
      part: `calibrate`, `select` or `report`; None for all three.

    Raises:
      ValueError: an unknown part, or a line that is not a stored document.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"`part` must be one of {', '.join(PARTS)}, got {part!r}")
    documents = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            document = (record["name"], record["text"].encode("utf-8"), record["part"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"line {number} of {path} is not a held-out document") from error
        if part in (None, document[2]):
            documents.append(document[:2])
    return documents


def windows(documents: Sequence[tuple[str, bytes]], length: int) -> Windows:
    """Cuts documents into windows of `length` bytes that overlap by one byte.

    The overlap makes every byte but a document's first a target exactly once.

    Raises:
      ValueError: `length` below 2, or no document has two bytes.

    >>> cut = windows([("a.py", b"import os"), ("b.py", b"x = 1")], 6)
    >>> cut.tokens.shape, cut.mask.sum(axis=1).tolist(), cut.document.tolist()
    ((3, 6), [5, 3, 4], [0, 0, 1])
    """
    if length < 2:
        raise ValueError(f"`length` must be at least 2, got {length}")
    tokens, masks, owners = [], [], []
    for index, (_, text) in enumerate(documents):
        for start in range(0, len(text) - 1, length - 1):
            piece = np.frombuffer(text[start : start + length], np.uint8)
            tokens.append(np.pad(piece, (0, length - len(piece))))
            masks.append(np.arange(1, length) < len(piece))
            owners.append(index)
    if not tokens:
        raise ValueError("`documents` must hold a document of at least two bytes, got none")
    return Windows(
        tokens=np.stack(tokens),
        mask=np.stack(masks),
        document=np.asarray(owners, np.int32),
        document_count=len(documents),
    )
