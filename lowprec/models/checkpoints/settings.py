"""The values of a `config.json`, each asked for by name and type."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = sys.maxsize
FLOAT32 = float(np.finfo(np.float32).max)
_MISSING: Any = object()


@dataclass(frozen=True, eq=False)
class Settings:
    """A table of a `config.json`.

    Keys that are absent, or null, give the default, or raise where there is none.

    Attributes:
      path: the file, for messages.
      table: what it holds.
      under: the table's own key, where it is inside another.

    Example:
      >>> Settings(Path("config.json"), {"hidden_size": 64}).whole("hidden_size")
      64
      >>> Settings(Path("config.json"), {}).whole("hidden_size")
      Traceback (most recent call last):
          ...
      ValueError: config.json: `hidden_size` is missing; it is a whole number of at least 1
    """

    path: Path
    table: dict[str, Any]
    under: str = ""

    def whole(self, key: str, default: int | None = _MISSING, *, least: int = 1) -> int:
        """A whole number of at least `least`, and no more than any array has elements."""
        fits = lambda x: type(x) is int and least <= x <= LARGEST
        return self._get(key, default, fits, f"a whole number of at least {least}")

    def number(self, key: str, default: float | None = _MISSING) -> float:
        """A number above 0 that float32 holds, as a float."""
        fits = lambda x: type(x) in (int, float) and 0 < x <= FLOAT32
        return float(self._get(key, default, fits, "a number above 0"))

    def flag(self, key: str, default: bool = _MISSING) -> bool:
        """True or false."""
        return self._get(key, default, lambda x: isinstance(x, bool), "true or false")

    def text(self, key: str, default: str | None = _MISSING) -> str:
        """A string."""
        return self._get(key, default, lambda x: isinstance(x, str), "a string")

    def whole_numbers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers above 0."""
        fits = lambda x: isinstance(x, list) and all(type(n) is int and 0 < n <= LARGEST for n in x)
        return tuple(self._get(key, _MISSING, fits, "a list of whole numbers above 0"))

    def has(self, key: str) -> bool:
        """Whether the key is there, and not null."""
        return self.table.get(key) is not None

    def inner(self, key: str) -> "Settings | None":
        """The table under a key, or None where it is absent."""
        if not self.has(key):
            return None
        found = self._get(key, _MISSING, lambda x: isinstance(x, dict), "a table")
        return Settings(self.path, found, f"{self.under}{key}.")

    def one_of(self, key: str, choices: tuple[str, ...], default: str = _MISSING) -> str:
        """One of the strings that are implemented.

        Raises:
          ValueError: it is another.
        """
        found = self.text(key, default)
        if found not in choices:
            raise self.error(key, f"is {found!r}; what is implemented is {', '.join(choices)}")
        return found

    def error(self, key: str, text: str) -> ValueError:
        """What is wrong with a key."""
        return ValueError(f"{self.path}: `{self.under}{key}` {text}")

    def _get(self, key: str, default: Any, fits: Any, wanted: str) -> Any:
        value = self.table.get(key)
        if value is None:
            if default is _MISSING:
                raise self.error(key, f"is missing; it is {wanted}")
            return default
        if not fits(value):
            raise self.error(key, f"is {value!r}; it must be {wanted}")
        return value


def read_settings(path: Path) -> Settings:
    """The settings of a file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a checkpoint's folder has one")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: is no JSON object")
    return Settings(path, table)
