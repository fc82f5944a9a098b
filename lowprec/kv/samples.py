"""What methods are fitted to: samples of keys and values, checked, and the heads that they have."""

from collections.abc import Mapping, Sequence

import numpy as np


def whole_samples(
    method: str, samples: Sequence[Mapping[str, np.ndarray]], name: str
) -> list[np.ndarray]:
    """The arrays of that name (batch, heads, tokens, dim), float32, of every sample.

    Args:
      method: how messages name who is fitted.
      name: `k`, `k_before_rope` or `v`.

    Raises:
      ValueError: a sample lacks it, has Inf or NaN, no four axes, no numbers, or heads and dim
        unlike those of the first.

    Example:
      >>> x = np.ones((1, 2, 3, 4))
      >>> [found.shape for found in whole_samples("mine", [{"k": x}, {"k": x[:, :, :1]}], "k")]
      [(1, 2, 3, 4), (1, 2, 1, 4)]
    """
    missing = [sample for sample in samples if name not in sample]
    if missing:
        raise ValueError(
            f"`samples`: one has {sorted(missing[0])} and lacks {name!r}, which the method "
            f"{method} is fitted to"
        )
    with np.errstate(over="ignore"):
        data = [np.asarray(sample[name]).astype(np.float32, copy=False) for sample in samples]
    for x in data:
        if x.ndim != 4 or x.shape[1::2] != data[0].shape[1::2] or not x.size:
            raise ValueError(
                f"`samples`: {name} of shape {x.shape} beside {data[0].shape}: use (batch, heads, "
                f"tokens, dim) with the same heads and dim in all"
            )
        if not np.isfinite(x).all():
            raise ValueError(
                f"`samples`: {name} has Inf or NaN, to which the method {method} cannot be fitted"
            )
    return data


def token_rows(x: np.ndarray) -> np.ndarray:
    """(batch, heads, tokens, dim) as one row a token, the numbers of all its heads in turn.

    Example:
      >>> token_rows(np.arange(8).reshape(1, 2, 2, 2)).tolist()
      [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    return x.swapaxes(1, 2).reshape(x.shape[0] * x.shape[2], -1)


def check_shape(name: str, fitted: tuple[int, ...], wanted: tuple[int, int]) -> None:
    """ValueError where a method was fitted to other heads or another dim than a cache has.

    Args:
      name: of the method.
      fitted: heads and dim of the samples; heads alone, or nothing, where no more was fitted.
      wanted: of the cache.

    Example:
      >>> check_shape("mine", (8, 128), (8, 128))
      >>> check_shape("mine", (8,), (8, 64))
    """
    if fitted != wanted[: len(fitted)]:
        parts = [
            f"{fitted[i]} {word}" for i, word in enumerate(("heads", "numbers")[: len(fitted)])
        ]
        raise ValueError(
            f"`heads` = {wanted[0]}, `dim` = {wanted[1]}: the method {name} was fitted to "
            f"{' of '.join(parts)}"
        )
