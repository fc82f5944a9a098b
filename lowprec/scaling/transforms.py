"""What is done to a tensor before it is quantized, and undone after it is dequantized.

Everything but `orthogonal` is float32 arithmetic on bit patterns in a fixed order: each addition,
product and quotient is rounded once to nearest even, subnormals are kept, nothing is contracted.
The bits depend on the elements that are combined alone, not on shape, backend or transformation.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from lowprec.numerics import float32
from lowprec.numerics.arguments import real_array, refuse_gradient_of
from lowprec.numerics.codec import narrow
from lowprec.scaling.addition import add, subtract, tree_sum
from lowprec.scaling.codings import Transform


def vector_for(
    transform: Transform | None,
    length: int,
    signs: ArrayLike | None,
    smoothing: ArrayLike | None,
) -> jax.Array | None:
    """The array that a transform of an axis of `length` takes, as float32, or None.

    Raises:
      TypeError: an array holds no numbers; truth values are none.
      ValueError: an array is missing, superfluous or misshapen, signs are not +1 and -1, factors
        not finite and above 0 (of a traced array values are not looked at), or the axis is no whole
        number of blocks long. Under `jax.grad`, with respect to the factors.
    """
    needs = None if transform is None else transform.needs
    for name, value in (("signs", signs), ("smoothing", smoothing)):
        if value is not None and needs != name:
            raise ValueError(
                f"`{name}` is for a block whose transform takes it"
                + (f"; this one takes `{needs}`" if needs else "; this one takes no array")
            )
    if transform is None:
        return None
    if transform.size and length % transform.size:
        raise ValueError(
            f"a contraction axis of {length} is not a whole number of the transform's blocks of "
            f"{transform.size}; pad it with zeros"
        )
    if needs is None:
        return None
    given = signs if needs == "signs" else smoothing
    wanted = {length, transform.size} - {0}
    if given is None:
        raise ValueError(
            f"the block's transform needs `{needs}`, an array of "
            f"{' or '.join(map(str, sorted(wanted)))} numbers"
        )
    array = real_array(needs, given)
    if array.shape not in {(count,) for count in wanted}:
        raise ValueError(
            f"`{needs}` has shape {array.shape}; it has "
            f"{' or '.join(map(str, sorted(wanted)))} numbers"
        )
    if not isinstance(array, Tracer):
        _check_values(needs, np.asarray(array))
    if needs == "signs":
        return array
    return refuse_gradient_of("smoothing", "the factors of the transform", array)


def _check_values(needs: str, array: np.ndarray) -> None:
    """Raises ValueError for what is no sign, or no factor."""
    signs = needs == "signs"
    wrong = np.abs(array) != 1 if signs else ~((array > 0) & np.isfinite(array))
    if np.any(wrong):
        raise ValueError(
            f"`{needs}` holds {array[wrong][0]}; "
            + ("use 1 and -1" if signs else "use finite float32 numbers above 0")
        )


def apply(
    bits: jax.Array, transform: Transform, axis: int, vector: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Transforms float32 bits; also what `undo` needs: the vector, or the means of `mean`."""
    match transform.kind:
        case "hadamard":
            flipped = bits ^ _sign_bits(bits.shape, transform, axis, vector)
            bits = hadamard(flipped, transform.size, axis)
        case "orthogonal":
            bits = _rotate(bits, orthogonal_matrix(transform), axis)
        case "smoothing":
            operation = float32.multiply if transform.inverse else float32.divide
            bits = operation(bits, _along(vector, bits, axis))
        case "mean":
            vector = mean(bits, _across(bits.ndim, axis))
            bits = subtract(bits, jnp.broadcast_to(float32.to_bits(vector), bits.shape))
    if transform.output != "float32":
        bits = float32.to_bits(narrow(bits, transform.output))
    return bits, vector


def undo(bits: jax.Array, transform: Transform, axis: int, vector: jax.Array | None) -> jax.Array:
    """The inverse of `apply`, in float32: exact but for the rounding of its own operations."""
    match transform.kind:
        case "hadamard":
            back = hadamard(bits, transform.size, axis)
            return back ^ _sign_bits(bits.shape, transform, axis, vector)
        case "orthogonal":
            return _rotate(bits, orthogonal_matrix(transform).T, axis)
        case "smoothing":
            operation = float32.divide if transform.inverse else float32.multiply
            return operation(bits, _along(vector, bits, axis))
        case "mean":
            assert vector is not None
            return add(bits, jnp.broadcast_to(float32.to_bits(vector), bits.shape))


def hadamard(bits: jax.Array, size: int, axis: int) -> jax.Array:
    """H x / sqrt(size) in blocks of `size` along an axis, H the Sylvester-Hadamard matrix.

    The sums are butterflies, of neighbours first: in step h = 1, 2, 4, ... the elements i and
    i + h, where i has no bit h, become x[i] + x[i + h] and x[i] - x[i + h]. The last step is the
    product with the float32 next to 1 / sqrt(size), a power of two for size = 4, 16, 64, ...

    A block whose sums could leave the range of float32, as it holds a magnitude of at least
    2^128 / size, is divided by size before and multiplied after; an element that would then be
    subnormal, some 2^240 times smaller than the largest, counts as zero.
    """
    axis %= bits.ndim
    steps = size.bit_length() - 1
    shape = bits.shape
    flip = jnp.array([[[0], [float32.SIGN]]], jnp.uint32)

    def step(_: int, blocks: jax.Array) -> jax.Array:
        # Neighbours along the first axis; then the bit of the index that they differ in becomes the
        # highest, so that every step is the same and the last one leaves the order as it was.
        pairs = blocks.reshape(-1, 2, blocks.shape[1])
        sums = add(pairs[:, ::-1], pairs ^ flip)
        return jnp.swapaxes(sums, 0, 1).reshape(blocks.shape)

    # Blocks side by side: a step then adds long rows, whatever the size of a block.
    blocks = jnp.moveaxis(bits, axis, -1).reshape(-1, size).T
    fields = (blocks >> 23) & 255
    large = jnp.max(fields, axis=0, keepdims=True) >= 255 - steps
    less = jnp.where(fields > steps, blocks - np.uint32(steps << 23), blocks & float32.SIGN)
    blocks = jnp.where(large & (fields < 255), less, blocks)
    blocks = lax.fori_loop(0, steps, step, blocks)
    root = np.float32(1.0 / math.sqrt(size))
    factor = jnp.where(large, (root * np.float32(size)).view(np.uint32), root.view(np.uint32))
    blocks = float32.multiply(blocks, jnp.broadcast_to(factor, blocks.shape)).T
    moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
    return jnp.moveaxis(blocks.reshape(moved), -1, axis)


def mean(bits: jax.Array, axis: int) -> jax.Array:
    """The float32 mean along an axis, which stays with length 1: a sum of pairs of pairs, divided.

    Values are float32 bits; sums of ever larger neighbourhoods are rounded once each.
    """
    count = float32.constant(float(bits.shape[axis]))
    total = tree_sum(bits, axis)
    return float32.from_bits(float32.divide(total, jnp.full_like(total, count)))


@functools.cache
def orthogonal_matrix(transform: Transform) -> np.ndarray:
    """A random orthogonal float32 matrix, uniform over all of them, from NumPy's PCG64.

    Computed by LAPACK in float64: the same on one machine and version.
    """
    normal = np.random.Generator(np.random.PCG64(transform.seed)).standard_normal(
        (transform.size, transform.size)
    )
    q, r = np.linalg.qr(normal)
    return (q * np.sign(np.diagonal(r))).astype(np.float32)


def _rotate(bits: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    size = matrix.shape[0]
    moved = jnp.moveaxis(float32.from_bits(bits), axis, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, size)
    turned = jnp.matmul(blocks, jnp.asarray(matrix).T, precision=lax.Precision.HIGHEST)
    return float32.to_bits(jnp.moveaxis(turned.reshape(moved.shape), -1, axis))


def _sign_bits(
    shape: tuple[int, ...], transform: Transform, axis: int, vector: jax.Array | None
) -> jax.Array:
    """The bits that turn signs over, broadcastable to `shape`."""
    if vector is None:
        if not transform.signs:
            return jnp.zeros((1,) * len(shape), jnp.uint32)
        vector = jnp.asarray(np.array(transform.signs, np.float32))
    repeats = shape[axis] // vector.shape[0]
    flips = jnp.tile(float32.to_bits(vector) & float32.SIGN, repeats)
    return flips.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])


def _along(vector: jax.Array | None, bits: jax.Array, axis: int) -> jax.Array:
    assert vector is not None
    sizes = [-1 if i == axis % bits.ndim else 1 for i in range(bits.ndim)]
    return jnp.broadcast_to(float32.to_bits(vector).reshape(sizes), bits.shape)


def _across(ndim: int, axis: int) -> int:
    """The axis over which `mean` is taken: of the last two, the one that is not contracted."""
    return ndim - 2 if axis % ndim == ndim - 1 else ndim - 1
