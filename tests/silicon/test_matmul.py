"""`lowprec.matmul` against bits that GPUs returned: every row of every capture."""

from collections.abc import Callable

import numpy as np
import pytest

from lowprec.engines import Engine, matmul
from lowprec.engines.matmul import nameless
from lowprec.numerics import get_format
from tests.helpers import assert_bits_equal
from tests.silicon.captures import CAPTURES, FORMATS, capture, engine_of


def by_program() -> dict[str, list[tuple[str, str]]]:
    """Captures that one program computes, in one test: engines alike but for their names."""
    found: dict[Engine, dict[str, list[tuple[str, str]]]] = {}
    for file, output in CAPTURES:
        fmt = file.split("_")[1]
        same = found.setdefault(nameless(engine_of(file, output)), {})
        same.setdefault(fmt, []).append((file, output))
    return {
        f"{engine_of(*captures[0]).name}-{fmt}": captures
        for formats in found.values()
        for fmt, captures in formats.items()
    }


@pytest.mark.parametrize("program", by_program())
def test_every_captured_row(program: str, record_property: Callable[[str, object], None]) -> None:
    for file, output in by_program()[program]:
        rows, engine = capture(file, output), engine_of(file, output)
        dtype = get_format(FORMATS[file.split("_")[1]]).dtype
        assert dtype is not None
        a, b = (x.view(dtype) for x in (rows.a, rows.b))
        c = rows.c.view(np.float32)
        got = matmul(a[:, None, :], b[:, :, None], c[:, None, None], engine=engine)
        assert_bits_equal(np.asarray(got).astype(np.float32).ravel(), rows.d.view(np.float32))
        assert len(np.unique(rows.d)) > len(rows.d) // 4
        record_property("captured rows", len(rows.d))
