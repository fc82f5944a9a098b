"""Products in two parts: other tokens in each, energies by group, and files that are too small."""

import numpy as np
import pytest

from lowprec.models.operands import Operands
from lowprec.study.advise_parts import Limits, cut


def layer(tokens: int, size: int = 8, out: int = 6) -> Operands:
    """Every token's row of x, and of dy, is its number, from 1."""
    number = np.arange(1, tokens + 1, dtype=np.float32)[:, None]
    w = np.random.default_rng(0).standard_normal((size, out)).astype(np.float32)
    return Operands("fc", x=np.repeat(number, size, 1), w=w, dy=np.repeat(number, out, 1))


@pytest.mark.parametrize("role", ["fprop", "dgrad"])
def test_tokens_are_rows_of_one_part_or_the_other(role: str) -> None:
    product = cut(layer(100), role, Limits(groups=8))  # type: ignore[arg-type] - a role
    rows = [part.pairs[0][0][:, 0] for part in (product.select, product.report)]
    assert not set(rows[0]) & set(rows[1]) and len(rows[0]) == len(rows[1]) == product.tokens == 48
    # Groups of twelve neighbours, in turn.
    assert rows[0][:13].tolist() == [*range(1, 13), 26] and rows[1][0] == 13
    assert product.shape == (48, *(layer(1).product(role)[1].shape))
    assert product.depth == product.shape[1]
    for part in (product.select, product.report):
        a, b = part.pairs[0]
        wide = (a.astype(np.float64) @ b.astype(np.float64)) ** 2
        by_group = [wide[i : i + 12].sum() for i in range(0, 48, 12)]
        np.testing.assert_allclose(part.signal, by_group, rtol=1e-12)
        noise = part.noise([np.zeros_like(wide)])
        np.testing.assert_allclose(noise, part.signal, rtol=1e-12)


def test_wgrad_contracts_the_tokens_of_each_group_alone() -> None:
    product = cut(layer(1100), "wgrad", Limits(tokens=1024))
    # Bits are those of the layer's own sums, over all of its tokens.
    assert product.shape == (8, 128, 6) and product.tokens == 512 and product.depth == 1100
    assert [len(part.pairs) for part in (product.select, product.report)] == [4, 4]
    seen = [a[0] for part in (product.select, product.report) for a, _ in part.pairs]
    assert len({x for tokens in seen for x in tokens}) == 8 * 128
    assert all((np.diff(tokens) == 1).all() for tokens in seen)
    # Spread over all tokens, although not all are used.
    assert max(x.max() for x in seen) > 1080
    assert product.report.signal.shape == (4,)


def test_wide_weights_are_sampled_in_whole_stripes_and_contractions_never() -> None:
    number = np.arange(1.0, 1025.0, dtype=np.float32)
    wide = Operands("fc", x=np.ones((64, 700), np.float32), w=np.tile(number, (700, 1)))
    product = cut(wide, "fprop", Limits(outputs=300))
    columns = product.select.pairs[0][1][0]
    assert product.shape == (32, 700, 256)
    assert columns[0] == 1 and columns[-1] == 1024 and (np.diff(columns) == 1).sum() == 254
    assert ((columns[::128] - 1) % 128 == 0).all()


@pytest.mark.parametrize(
    ("tokens", "role", "message"),
    [
        (3, "fprop", "layer fc: 3 tokens are too few.*4 tokens or more"),
        (3, "dgrad", "4 groups of 1"),
        (127, "wgrad", "4 groups of 32 are needed, 128 tokens; wgrad contracts tokens.*--role"),
    ],
)
def test_too_few_tokens(tokens: int, role: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut(layer(tokens), role, Limits())  # type: ignore[arg-type] - a role


def test_operands_that_have_no_product() -> None:
    bad = layer(64)
    assert bad.x is not None
    bad.x[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"`fc\.x` holds 1 NaN"):
        cut(bad, "fprop", Limits())
    zero = Operands("fc", x=np.zeros((64, 8), np.float32), w=np.ones((8, 2), np.float32))
    with pytest.raises(ValueError, match=r"fprop is zero.*leave the layer out"):
        cut(zero, "fprop", Limits())


@pytest.mark.parametrize(
    ("given", "message"),
    [({"groups": 5}, "groups.*even"), ({"tokens": 2}, "tokens"), ({"outputs": 0}, "outputs")],
)
def test_limits(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**given)
