"""A user's text as windows of tokens, by the checkpoint's own tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowprec.models.checkpoints.architecture import Architecture

try:
    import tokenizers
except ImportError:  # the extra is not installed: said by `read_text`, when it matters
    tokenizers = None

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenWindows:
    """Windows of one length over a text, none overlapping another.

    Attributes:
      tokens: (windows, length) int32; each begins with what the tokenizer puts before any text,
        such as a token that means the beginning, and ends with what it puts behind.
      byte_counts: (windows, length) int32, UTF-8 bytes of the text that each token stands for; 0
        of what the tokenizer added.
      mask: (windows, length) bool, True for tokens of the text.
    """

    tokens: np.ndarray
    byte_counts: np.ndarray
    mask: np.ndarray

    def __getitem__(self, chosen: slice) -> "TokenWindows":
        """Some of the windows."""
        return TokenWindows(
            tokens=self.tokens[chosen],
            byte_counts=self.byte_counts[chosen],
            mask=self.mask[chosen],
        )


def read_text(
    directory: Path, path: Path, architecture: Architecture, *, length: int, count: int
) -> TokenWindows:
    """The first windows of a text file.

    Args:
      directory: of the checkpoint, with a `tokenizer.json`.
      path: a UTF-8 text.
      architecture: the model's, whose context and vocabulary the windows fit.
      length: tokens of a window, at most the model's context. A shorter text makes one window.
      count: how many windows, at most.

    Raises:
      FileNotFoundError: there is no tokenizer, or no text.
      ValueError: a malformed tokenizer, a text that is not UTF-8 or has fewer than two tokens.
      ImportError: the package `tokenizers` is not installed.

    Example:
      >>> read_text(Path("Qwen3-0.6B"), Path("a.txt"), model, length=512, count=8)  # doctest: +SKIP
    """
    tokenizer = _tokenizer(directory / TOKENIZER)
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text: {error}") from error
    before, behind = _added(tokenizer)
    found = tokenizer.encode(text, add_special_tokens=False)
    inside = min(length, architecture.context) - len(before) - len(behind)
    inside = min(inside, len(found.ids))
    if inside < 1 or inside + len(before) < 2:
        raise ValueError(
            f"{path}: has {len(found.ids)} tokens, and a window of {length} has room for "
            f"{max(inside, 0)} of them; at least two are needed"
        )
    windows = min(count, len(found.ids) // inside)
    shape = (windows, inside)
    own = np.asarray(found.ids[: windows * inside], np.int32).reshape(shape)
    sizes = _byte_counts(text, found.offsets)[: windows * inside].reshape(shape)
    first, last = (np.tile(np.asarray(x, np.int32), (windows, 1)) for x in (before, behind))
    return TokenWindows(
        tokens=np.concatenate([first, own, last], axis=1),
        byte_counts=np.concatenate([0 * first, sizes, 0 * last], axis=1),
        mask=np.concatenate([first < 0, own >= 0, last < 0], axis=1),
    )


def _tokenizer(path: Path) -> Any:
    if tokenizers is None:
        raise ImportError(
            f'{path}: reading a tokenizer needs a package: pip install "lowprec[checkpoints]"'
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a checkpoint's folder has one")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path}: is no tokenizer: {error}") from error
    # A file may ask for texts to be cut or filled up to a length: windows do that here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens put before and behind a text."""
    found = tokenizer.encode("a", add_special_tokens=True)
    own = [place for place, special in enumerate(found.special_tokens_mask) if not special]
    if not own:
        return [], []
    return found.ids[: own[0]], found.ids[own[-1] + 1 :]


def _byte_counts(text: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """Bytes between the end of each token's characters and that of the one before.

    Of several tokens of one character, as byte-level tokenizers make them, the first counts all
    its bytes and the others none.
    """
    sizes = np.fromiter((len(x.encode("utf-8")) for x in text), np.int64, len(text))
    until = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.maximum.accumulate(np.asarray([end for _, end in offsets], np.int64))
    return np.diff(until[ends], prepend=0).astype(np.int32)
