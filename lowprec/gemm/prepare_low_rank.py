"""Two thin matrices nearest to a matrix, in a norm that calibration rows may weight.

A truncated singular value decomposition (Eckart and Young, 1936) of C E, with C the weighting, and
C undone on the left factor: by LAPACK in float64, the same on one machine and version.
"""

import numpy as np
from numpy.typing import NDArray

from lowprec.gemm.preparation import LowRank
from lowprec.gemm.prepare_calibration import Calibration, Turn


def nearest_low_rank(
    matrix: NDArray, steps: LowRank, calibration: Calibration | None, turn: Turn
) -> tuple[NDArray, NDArray]:
    """A (K, rank) and B (rank, N) in float64, A B nearest to the matrix (K, N).

    Channels that calibration never reached have zeros in A where the norm weights by magnitude.

    Args:
      matrix: float64.
      steps: rank and norm.
      calibration: rows of x where the norm takes them.
      turn: what becomes of them before they are multiplied.

    Raises:
      ValueError: a rank above that of any such matrix, or singular moments.
    """
    if steps.rank > min(matrix.shape):
        raise ValueError(
            f"low_rank: rank = {steps.rank} of a weight {matrix.shape}; at most {min(matrix.shape)}"
        )
    if steps.weighting == "none":
        return _truncated(matrix, steps.rank)
    assert calibration is not None
    if steps.weighting == "magnitude":
        size = calibration.mean_magnitude(turn)[:, None]
        left, right = _truncated(size * matrix, steps.rank)
        return np.divide(left, size, out=np.zeros_like(left), where=size > 0), right
    assert steps.damping is not None
    moment = calibration.second_moment(turn)
    moment[np.diag_indices_from(moment)] += steps.damping * np.mean(np.diagonal(moment))
    try:
        whitening = np.linalg.cholesky(moment).T
    except np.linalg.LinAlgError:
        raise ValueError(
            f"low_rank: the second moments of `calibration` are singular with damping = "
            f"{steps.damping}; give more rows than the weight has ({len(moment)}), or more damping"
        ) from None
    left, right = _truncated(whitening @ matrix, steps.rank)
    return np.linalg.solve(whitening, left), right


def _truncated(matrix: NDArray, rank: int) -> tuple[NDArray, NDArray]:
    left, sizes, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], sizes[:rank, None] * right[:rank]
