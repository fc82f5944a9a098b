"""Which values a format holds, and their codes: by fields, nothing is rounded."""

import numpy as np

from lowprec.numerics.format import Format


def exact_codes(values: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """The codes of values, and whether the format holds each.

    Args:
      values: float64 or narrower, of any shape; 0 of a format without zero is not held.
      fmt: any format but two's complement.

    Returns:
      codes: int64 of the same shape; of a value that is not held, 0. A NaN is the format's own.
      held: bool of the same shape; -0 where the format has one zero is not held.

    Example:
      >>> from lowprec.numerics import get_format
      >>> codes, held = exact_codes(np.array([1.0, 1.03125, -448.0]), get_format("float8_e4m3fn"))
      >>> [hex(code) for code in codes], held.tolist()
      (['0x38', '0x0', '0xfe'], [True, False, True])
    """
    x = np.asarray(values, np.float64)
    if fmt.table is not None:
        return _table_codes(x, fmt)
    negative = np.signbit(x)
    magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
    binade = np.where(magnitude > 0, np.frexp(magnitude)[1].astype(np.int64) - 1, fmt.min_exponent)
    exponent = np.maximum(binade, fmt.min_exponent)
    # Exact: a power of two, far from the ends of float64 for all that float32 holds.
    scaled = np.ldexp(magnitude, (fmt.mantissa_bits - exponent).astype(np.int32))
    significand = np.floor(scaled).astype(np.int64)
    code = ((exponent - fmt.min_exponent) << fmt.mantissa_bits) + significand
    if not fmt.subnormals:
        code -= 1 << fmt.mantissa_bits
    held = (scaled == significand) & (code <= fmt.max_code) & (code >= 0)
    held &= (significand > 0) | (fmt.zero != "none")
    held &= ~negative | (fmt.signed & ((magnitude > 0) | (fmt.zero == "signed")))
    held &= np.isfinite(x)
    code = code | np.where(negative, fmt.sign_mask, 0)
    code = np.where(held, code, 0)
    if fmt.infinity_code is not None:
        infinite = np.isinf(x) & (fmt.signed | ~negative)
        code = np.where(infinite, fmt.infinity_code | np.where(negative, fmt.sign_mask, 0), code)
        held |= infinite
    if fmt.nan_code is not None:
        code, held = np.where(np.isnan(x), fmt.nan_code, code), held | np.isnan(x)
    return code, held


def _table_codes(x: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    assert fmt.table is not None
    known = {np.float64(value).tobytes(): code for code, value in enumerate(fmt.table)}
    found = [known.get(value.tobytes(), -1) for value in x.ravel()]
    codes = np.array(found, np.int64).reshape(x.shape)
    return np.maximum(codes, 0), codes >= 0


def holds(values: np.ndarray, fmt: Format) -> bool:
    """Whether a format holds every value."""
    if fmt.encoding == "twos_complement":
        return False
    return bool(exact_codes(values, fmt)[1].all())
