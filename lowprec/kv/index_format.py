"""The format that packs places in a table of levels."""

import functools

from lowprec.numerics.format import Format


@functools.cache
def index_format(bits: int) -> Format:
    """Whole numbers from 0 up in so many bits, 1 to 8; `pack` looks at the bits alone.

    Example:
      >>> index_format(2).table
      (0.0, 1.0, 2.0, 3.0)
    """
    return Format(name="code", table=tuple(float(x) for x in range(1 << bits)))
