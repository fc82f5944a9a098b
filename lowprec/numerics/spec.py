"""Whether a spec that was made in Python has the types that its dataclass declares.

`lowprec.catalogue` asks the same of a TOML file; without it a misspelt choice would pass as another
one, unseen.
"""

import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

_NUMBERS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: ((int, np.integer), "an int"),
    float: ((float, int, np.floating, np.integer), "a float"),
}
_MISFIT = object()


def check_spec(what: str, spec: Any) -> None:
    """Raises unless each field of a frozen dataclass has the type that is declared for it.

    NumPy's numbers become Python's, and an int a float where that is declared, so that equal specs
    look alike. None passes where it is the default.

    Args:
      what: how messages name the spec, such as "block 'mine'".

    Raises:
      ValueError: a text that is none of those in a `Literal`, or a tuple of something else.
      TypeError: another type.
    """
    for name, hint, default in _declared(type(spec)):
        value = getattr(spec, name)
        if value is None and default is None:
            continue
        fitted = _fitted(value, hint)
        if fitted is _MISFIT:
            raise _error(value, hint)(
                f"{what}: `{name}` = {reprlib.repr(value)} ({type(value).__name__}); "
                f"use {_described(hint)}"
            )
        if fitted is not value:
            object.__setattr__(spec, name, fitted)


def floats(what: str, name: str, values: Iterable[Any]) -> tuple[float, ...]:
    """Any sequence of numbers, a NumPy array included, as floats.

    Raises:
      TypeError: it is none.
    """
    try:
        return tuple(float(x) for x in values)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{what}: `{name}` must be a sequence of numbers, got {values!r}"
        ) from error


@functools.cache
def _declared(cls: type) -> tuple[tuple[str, Any, Any], ...]:
    """Name, type and default of each field."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(typing.cast(Any, cls))
    return tuple((field.name, hints[field.name], field.default) for field in fields)


def _fitted(value: Any, hint: Any) -> Any:
    """The value as its type has it, or `_MISFIT`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value if isinstance(value, str) and value in options else _MISFIT
    if origin in (typing.Union, types.UnionType):
        found = (_fitted(value, option) for option in options)
        return next((x for x in found if x is not _MISFIT), _MISFIT)
    if origin is tuple:
        return _fitted_tuple(value, options)
    if hint in _NUMBERS:
        wrong = isinstance(value, (bool, np.bool_)) and hint is not bool
        fits = isinstance(value, _NUMBERS[hint][0]) and not wrong
        return _MISFIT if not fits else value if type(value) is hint else hint(value)
    return value if isinstance(value, hint) else _MISFIT


def _fitted_tuple(value: Any, items: tuple[Any, ...]) -> Any:
    if not isinstance(value, tuple):
        return _MISFIT
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    fitted = tuple(map(_fitted, value, items))
    if len(value) != len(items) or any(x is _MISFIT for x in fitted):
        return _MISFIT
    return value if all(a is b for a, b in zip(value, fitted, strict=True)) else fitted


def _error(value: Any, hint: Any) -> type[Exception]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [typing.get_origin(x) for x in (typing.get_args(hint) if union else (hint,))]
    text, several = isinstance(value, str), isinstance(value, tuple)
    return ValueError if (text and Literal in kinds) or (several and tuple in kinds) else TypeError


def _described(hint: Any) -> str:
    """What works, in words."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ("one of " if len(options) > 1 else "") + ", ".join(map(repr, options))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, options))
    if origin is tuple:
        if options[1:] == (Ellipsis,):
            return f"a tuple, each of it {_described(options[0])}"
        return f"a tuple of {len(options)}: {', '.join(map(_described, options))}"
    if hint in _NUMBERS:
        return _NUMBERS[hint][1]
    if hint is types.NoneType:
        return "None"
    return f"{'an' if hint.__name__[0] in 'AEIOU' else 'a'} {hint.__name__}"
