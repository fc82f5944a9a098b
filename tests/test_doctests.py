"""The examples in docstrings say what the code does."""

import doctest
import importlib
import inspect
import pkgutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowprec

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lowprec.__path__, "lowprec.")
    if not module.name.endswith("__main__")
)
GLOBALS = {"jax": jax, "jnp": jnp, "np": np, "lp": lowprec}


def load(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        # A module may explain what to install: the package it missed is then the cause.
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        package = missing.name if isinstance(missing, ModuleNotFoundError) else None
        if package is None or package.startswith("lowprec"):
            raise
        pytest.skip(f"{name} needs the optional package {package}")


@pytest.mark.parametrize(
    "name",
    # A whole model is compiled for that one.
    [pytest.param(x, marks=[pytest.mark.slow] * (x == "lowprec.models.capture")) for x in MODULES],
)
def test_examples(name: str) -> None:
    module = load(name)
    failed, attempted = doctest.testmod(module, extraglobs=GLOBALS)
    assert failed == 0, f"{failed} of {attempted} examples of {name} fail; see the output"
    # An example that doctest does not find, under a decorator for instance, would prove nothing.
    lines = [line.strip() for line in inspect.getsource(module).splitlines()]
    examples = [line for line in lines if line.startswith(">>> ") and "+SKIP" not in line]
    assert attempted == len(examples)


def test_there_are_modules_and_a_wrong_example_fails() -> None:
    assert "lowprec.numerics.codec" in MODULES
    wrong = types.ModuleType("wrong", ">>> 1 + 1\n3\n")
    assert doctest.testmod(wrong, report=False, verbose=False).failed == 1
