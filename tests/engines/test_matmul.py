"""`matmul`: fp32 against exact arithmetic, native against a bound, and laws that hold for both."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lowprec.engines import get_engine, list_engines, matmul
from lowprec.engines.oracle import sequential_dot
from tests.helpers import NOT_FINITE, SIGN, SPECIALS, UInts, as_bits, assert_bits_equal, floats

ENGINES = ("fp32", "native")
FIRST_IS_SLOW = [pytest.param("fp32", marks=pytest.mark.slow), "native"]
NAN = 0x7FC00000
M, K, N = 3, 11, 4


def canonical(x: jax.Array | np.ndarray) -> np.ndarray:
    """Bits with every NaN as one: IEEE 754 leaves its payload open."""
    return np.where(np.isnan(np.asarray(x)), np.uint32(NAN), as_bits(x)).astype(np.uint32)


def exact_product(a: UInts, b: UInts, c: UInts | None) -> UInts:
    rows, columns = a.tolist(), b.T.tolist()
    start = np.zeros((len(rows), len(columns)), np.uint32) if c is None else c
    return np.array(
        [
            [sequential_dot(row, column, int(start[i, j])) for j, column in enumerate(columns)]
            for i, row in enumerate(rows)
        ],
        np.uint32,
    )


def operands(*shapes: tuple[int, ...], seed: int = 0) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@st.composite
def matrices(draw: st.DrawFn, *shapes: tuple[int, int]) -> list[UInts]:
    """Patterns: any, near 1 with few mantissa bits so that sums cancel, or near the limits."""
    kind = draw(st.sampled_from(("any", "cancel", "cancel", "tiny", "huge", "mixed")))
    out = []
    for rows, columns in shapes:
        size = rows * columns
        drawn = draw(st.lists(st.integers(0, 2**32 - 1), min_size=size, max_size=size))
        raw = np.array(drawn, np.uint32)
        centre = {"any": None, "cancel": 127, "tiny": 64, "huge": 189, "mixed": 100}[kind]
        if centre is not None:
            exponent = np.uint32(centre) + (raw >> 23) % np.uint32(2 if kind != "mixed" else 60)
            kept = np.uint32(0x80700000 if kind == "cancel" else 0x807FFFFF)
            raw = (raw & kept) | exponent << 23
        specials = draw(st.lists(st.sampled_from((*SPECIALS, SIGN, *NOT_FINITE)), max_size=2))
        if draw(st.booleans()):
            raw[: len(specials)] = specials
        out.append(raw.astype(np.uint32).reshape(rows, columns))
    return out


@settings(max_examples=60)
@given(bits=matrices((M, K), (K, N), (M, N)), with_c=st.booleans())
def test_fp32_is_exact(bits: list[UInts], with_c: bool) -> None:
    a, b, c = bits
    start = c if with_c else None
    got = matmul(
        jnp.asarray(floats(a)),
        jnp.asarray(floats(b)),
        jnp.asarray(floats(c)) if with_c else None,
        engine="fp32",
    )
    assert_bits_equal(canonical(got), exact_product(a, b, start))


def test_fp32_flushes_what_is_tiny_after_rounding() -> None:
    # Products around 2^-126, the smallest normal number: 2^-63 (1 + 2^-23) times 2^-63 (1 - 2^-24)
    # lies between it and the next; 2^-62 (1 - 2^-24) times 2^-64 is 2^-126 (1 - 2^-24), so tiny.
    pairs = [(0x20000001, 0x1FFFFFFF), (0x207FFFFF, 0x1F800000), (0x20000000, 0x20000000)]
    for x, y in pairs:
        a, b = np.array([[x], [x | SIGN]], np.uint32), np.array([[y]], np.uint32)
        got = matmul(floats(a), floats(b), engine="fp32")
        assert_bits_equal(as_bits(got), exact_product(a, b, None))
    tiny = matmul(floats([[0x207FFFFF]]), floats([[0x1F800000]]), engine="fp32")
    assert as_bits(tiny).item() == 0


@pytest.mark.parametrize("depth", [1, 9])
def test_fp32_starts_from_plus_zero(depth: int) -> None:
    # 0 + -0 is +0: a compiler that drops the sum with a constant zero would leave -0.
    a, b = -jnp.ones((1, depth)), jnp.zeros((depth, 1))
    assert as_bits(matmul(a, b, engine="fp32")).item() == 0
    start = -jnp.zeros((1, 1))
    assert as_bits(matmul(a, b, start, engine="fp32")).item() == SIGN


def test_fp32_sums_in_order_and_fuses_nothing() -> None:
    a, b = operands((40, 300), (300, 30))
    total = np.zeros((40, 30), np.float32)
    for k in range(300):
        total = total + np.asarray(a)[:, k : k + 1] * np.asarray(b)[k : k + 1]
    assert_bits_equal(matmul(a, b, engine="fp32"), total)
    backwards = matmul(a[:, ::-1], b[::-1], engine="fp32")
    assert np.mean(as_bits(backwards) != as_bits(total)) > 0.5


def test_native_is_within_the_bound_of_any_order() -> None:
    a, b, c = operands((40, 300), (300, 30), (40, 30))
    wide = [np.asarray(x, np.float64) for x in (a, b, c)]
    error = np.abs(np.asarray(matmul(a, b, c, engine="native")) - (wide[0] @ wide[1] + wide[2]))
    # K products of tiles padded to 384, 3 sums of tiles, c: n u / (1 - n u) of |A| |B| + |C|.
    n = 384 + 3 + 1
    gamma = n * 2.0**-24 / (1 - n * 2.0**-24)
    assert np.all(error <= gamma * (np.abs(wide[0]) @ np.abs(wide[1]) + np.abs(wide[2])))
    assert error.max() > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_specials_propagate(engine: str) -> None:
    a = jnp.array([[1.0, jnp.inf], [jnp.nan, 1.0], [0.0, 1.0], [1.0, 1.0]])
    b = jnp.array([[1.0, jnp.inf], [1.0, -jnp.inf]])
    got = np.asarray(matmul(a, b, engine=engine))
    want = [[np.inf, np.nan], [np.nan, np.nan], [1.0, np.nan], [2.0, np.nan]]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("engine", FIRST_IS_SLOW)
def test_bits_do_not_depend_on_m_and_n(engine: str) -> None:
    a, b = operands((130, 70), (70, 131))
    whole = np.asarray(matmul(a, b, engine=engine))
    assert_bits_equal(matmul(a[5:8], b, engine=engine), whole[5:8])
    assert_bits_equal(matmul(a[129:], b[:, 129:], engine=engine), whole[129:, 129:])
    assert_bits_equal(matmul(a[:1], b[:, :17], engine=engine), whole[:1, :17])


@pytest.mark.parametrize("engine", ENGINES)
def test_bits_do_not_depend_on_the_place_of_a_row_or_column(engine: str) -> None:
    a, b = operands((130, 70), (70, 131))
    whole = np.asarray(matmul(a, b, engine=engine))
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(130), rng.permutation(131)
    assert_bits_equal(matmul(a[rows], b[:, columns], engine=engine), whole[rows][:, columns])


@pytest.mark.parametrize("engine", ENGINES)
def test_zeros_appended_to_k_change_nothing(engine: str) -> None:
    a, b = operands((5, 70), (70, 6))
    want = matmul(a, b, engine=engine)
    padded = matmul(jnp.pad(a, [(0, 0), (0, 90)]), jnp.pad(b, [(0, 90), (0, 0)]), engine=engine)
    assert_bits_equal(padded, want)


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_axes_broadcast_and_are_products_of_their_own(engine: str) -> None:
    a, b, c = operands((2, 1, 5, 70), (3, 70, 6), (5, 6))
    got = np.asarray(matmul(a, b, c, engine=engine))
    assert got.shape == (2, 3, 5, 6)
    for i, j in np.ndindex(2, 3):
        assert_bits_equal(got[i, j], matmul(a[i, 0], b[j], c, engine=engine))


@pytest.mark.parametrize("engine", FIRST_IS_SLOW)
def test_eager_jit_vmap_and_scan_agree(engine: str) -> None:
    a, b = operands((4, 5, 70), (70, 6))
    one = lambda x: matmul(x, b, engine=engine)
    want = np.stack([one(x) for x in a])
    assert_bits_equal(jax.jit(one)(a[0]), want[0])
    assert_bits_equal(jax.vmap(one)(a), want)
    assert_bits_equal(jax.lax.scan(lambda _, x: (None, one(x)), None, a)[1], want)
    columns = jax.vmap(lambda v: matmul(a[0], v[:, None], engine=engine)[:, 0], 1, 1)(b)
    assert_bits_equal(columns, want[0])
    # Both mapped: a product with a batch axis, which a library sums in another order.
    both = jax.vmap(lambda x, y: matmul(x, y, engine=engine))(a, jnp.stack([b, b, b, b]))
    assert_bits_equal(both, want)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradient_is_that_of_the_exact_product(engine: str) -> None:
    a, b, c, weights = operands((5, 70), (70, 6), (5, 6), (5, 6))
    loss = lambda a, b, c: jnp.sum(weights * matmul(a, b, c, engine=engine))
    da, db, dc = (np.asarray(g, np.float64) for g in jax.grad(loss, (0, 1, 2))(a, b, c))
    wa, wb, w = (np.asarray(x, np.float64) for x in (a, b, weights))
    np.testing.assert_array_equal(dc, w)
    for got, left, right in ((da, w, wb.T), (db, wa.T, w)):
        bound = 2.0**-24 * (left.shape[1] + 2) * (np.abs(left) @ np.abs(right))
        assert np.all(np.abs(got - left @ right) <= bound)


@pytest.mark.parametrize("engine", ENGINES)
def test_c_joins_the_sum(engine: str) -> None:
    a, b = jnp.array([[1.0, -1.0]]), jnp.array([[2.0**24], [2.0**24]])
    # From c = 1: 1 + 2^24 is 2^24 to float32, and the rest cancels; added last, 1 remains.
    want = {"fp32": 0.0, "native": 1.0}[engine]
    assert matmul(a, b, jnp.ones((1, 1)), engine=engine).item() == want
    assert matmul(a, b, engine=engine).item() == 0.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
def test_narrow_operands_are_their_values(dtype: Any) -> None:
    a, b = (x.astype(dtype) for x in operands((3, 11), (11, 4)))
    wide = [jnp.asarray(np.asarray(x).astype(np.float32)) for x in (a, b)]
    got = matmul(a, b, engine="fp32")
    assert got.dtype == jnp.float32
    assert_bits_equal(got, matmul(*wide, engine="fp32"))


def ones(*shape: int) -> NDArray[np.float32]:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "do not multiply", (ones(2, 3), ones(2, 3))),
        (ValueError, "do not multiply", (ones(3), ones(3, 2))),
        (ValueError, "empty", (ones(2, 0), ones(0, 3))),
        (ValueError, "broadcast", (ones(2, 4, 3), ones(5, 3, 2))),
        (ValueError, "`c` has shape", (ones(2, 3), ones(3, 4), ones(4, 2))),
        (TypeError, "float64", (np.ones((2, 3)), ones(3, 4))),
        (TypeError, "int32", (ones(2, 3), np.ones((3, 4), np.int32))),
    ],
)
def test_errors(error: type[Exception], message: str, arguments: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(error, match=message):
        matmul(*arguments, engine="fp32")


def test_engines_are_found_by_name_and_value() -> None:
    assert {"fp32", "native"} <= set(list_engines())
    fp32 = get_engine("fp32")
    assert get_engine(fp32) is fp32 and hash(fp32) == hash(get_engine("fp32"))
    assert fp32.reproducibility == "bit_exact"
    assert get_engine("native").reproducibility == "same_backend"
    with pytest.raises(ValueError, match="did you mean"):
        get_engine("fp31")
    with pytest.raises(TypeError, match="`engine` must be"):
        get_engine(32)  # type: ignore[arg-type] - a wrong type is the test
