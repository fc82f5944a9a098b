"""Cards on disk: JSON with statistics and names of layers only, so that they can be shared."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from lowprec.models.array_checks import is_float, quoted
from lowprec.models.cards import OperandCard
from lowprec.models.key_value_cards import KeyValueCard

VERSION = 1
"""Of the file's layout."""
RANGES = {
    # The fourth moment is at least the square of the second.
    "excess_kurtosis": (-2.0, math.inf),
    "effective_rank": (0.0, 1.0),
    "top_energy": (0.0, 1.0),
    "zero_fraction": (0.0, 1.0),
}
"""Of statistics; others are 0 or more."""
LARGEST = sys.float_info.max
SLACK = 1e-6
"""By which a sum in float64 may be beyond what it stands for."""


def write_cards(
    path: str | Path,
    cards: Mapping[str, OperandCard],
    *,
    about: Mapping[str, Any] | None = None,
    key_values: Sequence[KeyValueCard] = (),
) -> None:
    """Writes cards by the names of their tensors.

    Args:
      path: of the file.
      cards: by tensor, such as `layers.0.attention.q.x`.
      about: what else to say, of plain Python types: the model's architecture, how many tokens.
      key_values: cards of caches, which are for people to read: `read_cards` passes them over.

    Raises:
      ValueError: a number that JSON has no word for (NaN, Inf).
    """
    table = {
        "lowprec_cards": VERSION,
        "about": dict(about or {}),
        "cards": {name: card.to_dict() for name, card in cards.items()},
        "key_values": [card.to_dict() for card in key_values],
    }
    Path(path).write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_cards(path: str | Path) -> dict[str, OperandCard]:
    """The cards of a file that `write_cards` wrote, by tensor.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such file, or a card lacks a statistic, has an unknown one, or one that
        no matrix has: the message names the tensor and the statistic.

    Example:
      >>> import numpy as np
      >>> from lowprec.models.cards import card
      >>> write_cards("/tmp/cards.json", {"fc.x": card(np.eye(4))})
      >>> read_cards("/tmp/cards.json")["fc.x"].amax
      1.0
    """
    path = Path(path)
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
    if not isinstance(table, dict) or table.get("lowprec_cards") != VERSION:
        raise ValueError(f"{path}: holds no cards: `lowprec_cards` = {VERSION} is missing")
    cards = table.get("cards")
    if not isinstance(cards, dict):
        raise ValueError(f"{path}: `cards` must be a table by tensor")
    return {name: _card(f"{path}: card {quoted(name)}", found) for name, found in cards.items()}


def _card(what: str, found: Any) -> OperandCard:
    if not isinstance(found, dict):
        raise ValueError(f"{what} must be a table of statistics")
    names = [field.name for field in fields(OperandCard)]
    for missing in [x for x in names if x not in found]:
        raise ValueError(f"{what} lacks `{missing}`")
    for unknown in [x for x in found if x not in names]:
        raise ValueError(f"{what} has an unknown `{unknown}`")
    shape, dtype, axis = found["shape"], found["dtype"], found["axis"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(_whole(x, 1) for x in shape)):
        raise ValueError(f"{what}: `shape` = {shape!r} must be two whole numbers above 0")
    if not _is_float_name(dtype):
        raise ValueError(f"{what}: `dtype` = {dtype!r} must be a float type, such as bfloat16")
    if axis not in (0, 1) or isinstance(axis, bool):
        raise ValueError(f"{what}: `axis` = {axis!r} must be 0 or 1")
    numbers = {name: found[name] for name in names[3:]}
    for name, value in numbers.items():
        least, most = RANGES.get(name, (0.0, math.inf))
        if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
            raise ValueError(f"{what}: `{name}` = {value!r} must be a finite number")
        if not least <= value <= most * (1 + SLACK):
            raise ValueError(f"{what}: `{name}` = {value!r} must be from {least:g} to {most:g}")
    if numbers["rms"] > numbers["amax"] * (1 + SLACK):
        raise ValueError(
            f"{what}: `rms` = {numbers['rms']!r} must be at most `amax` = {numbers['amax']!r}"
        )
    return OperandCard(shape=(shape[0], shape[1]), dtype=dtype, axis=axis, **numbers)


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _is_float_name(dtype: Any) -> bool:
    try:
        return isinstance(dtype, str) and is_float(jnp.dtype(dtype))
    except TypeError:
        return False
