"""Inference of a product's arithmetic: on engines, on models of this file's own, on libraries."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import lowprec as lp
from lowprec.cli import run
from lowprec.numerics import oracle
from lowprec.study.black_box import Dots
from lowprec.study.exact_codes import exact_codes, holds
from lowprec.study.probe import probe
from lowprec.study.probe_candidates import Observed
from lowprec.study.summation_order import Tree, leaves, lost_of, neighbours, order_of

WIDE17 = """
name = "wide17"
inputs = ["float8_e4m3fn", "float8_e5m2"]
output = "float32"
fused_length = 24
fraction_bits = 17
output_rounding = "nearest_even"
accumulator = "last"
[evidence]
level = "P"
domain = "imagined"
"""


def random_tree(rng: np.random.Generator, members: list[int]) -> Tree:
    """A tree over terms in any order, with nodes of two to four children."""
    if len(members) == 1:
        return members[0]
    count = min(len(members), int(rng.integers(2, 5)))
    cuts = np.sort(rng.choice(np.arange(1, len(members)), count - 1, replace=False))
    parts = np.split(np.array(members), cuts)
    return tuple(random_tree(rng, part.tolist()) for part in parts)


@pytest.mark.parametrize("seed", range(20))
def test_any_tree_is_found_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, rng.permutation(24).tolist())
    table = lost_of(tree, 24)
    found = order_of(24 - table)
    if found.kind == "exact":
        pytest.fail("a tree that rounds is not exact")
    assert found.tree is not None and (lost_of(found.tree, 24) == table).all()
    # One count that fits no tree, and none is reported.
    p, q = 3, 17
    survivors = 24 - table
    survivors[p, q] += 1 if survivors[p, q] < 11 else -1
    assert order_of(survivors).kind == "unresolved"


def in_turn(operands: list[Tree]) -> Tree:
    total = operands[0]
    for operand in operands[1:]:
        total = (total, operand)
    return total


def steps_of(length: int, count: int) -> Tree:
    total: Tree = tuple(range(length))
    for start in range(length, count, length):
        total = (total, *range(start, min(start + length, count)))
    return total


@pytest.mark.parametrize(
    ("tree", "kind", "length", "words"),
    [
        (in_turn(list(range(16))), "chain", 1, "sequential"),
        (steps_of(8, 20), "chain", 8, "8 products and the sum so far"),
        (neighbours(range(16)), "pairwise", None, "level by level"),
        (in_turn([neighbours(range(k, k + 4)) for k in (0, 4, 8, 12)]), "pairwise", 4, "runs of 4"),
        (in_turn([in_turn(list(range(k, k + 4))) for k in (0, 4)]), "chunked", 4, "chunks of 4"),
        (in_turn([tuple(range(k, k + 6)) for k in (0, 6)]), "last", 6, "joins last"),
        ((((0, 1, 4, 5), 2, 3, 6, 7), ((8, 9, 12, 13), 10, 11, 14, 15)), "last", 4, "dealt to 2"),
        (((0, 2), (1, 3)), "tree", None, "((0 2) (1 3))"),
    ],
)
def test_known_orders_are_named(tree: Tree, kind: str, length: int | None, words: str) -> None:
    count = len(leaves(tree))
    found = order_of(count - lost_of(tree, count))
    assert (found.kind, found.length) == (kind, length) and words in str(found)


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "float8_e4m3fnuz"]
)
def test_exact_codes_are_the_codes(name: str) -> None:
    fmt = lp.get_format(name)
    values = np.array([float(oracle.decode(code, fmt)) for code in range(1 << fmt.bits)])
    codes, held = exact_codes(values, fmt)
    number = ~np.isnan(values)
    assert held.all() and (codes[number] == np.flatnonzero(number)).all()
    between = (values[1:4] + values[2:5]) / 2
    assert not exact_codes(between, fmt)[1].any() and not holds(np.array([1e9]), fmt)


def exponent(x: np.ndarray) -> np.ndarray:
    """floor(log2|x|), below everything for 0."""
    return np.where(x == 0, -400, np.frexp(x)[1] - 1)


def model(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, length: int, bits: int, cut: Any, last: bool
) -> np.ndarray:
    """A fused engine in float64, where such sums are exact; normal operands only."""
    a, b = a.astype(np.float64).T[:, :, None], b.astype(np.float64)[:, None, :]
    total = c.astype(np.float64)
    for start in range(0, len(a), length):
        x, y = a[start : start + length], b[start : start + length]
        exponents = np.where(x * y == 0, -400, exponent(x) + exponent(y)).max(0)
        if not last:
            exponents = np.maximum(exponents, exponent(total))
        unit = 2.0 ** (exponents - bits)
        kept = (cut(x * y / unit) * unit).sum(0)
        total = kept + (total if last else cut(total / unit) * unit)
        total = total.astype(np.float32).astype(np.float64)
    return total.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "bits", "cut", "last", "alignment"),
    [
        (12, 14, np.rint, True, "nearest_even"),
        (6, 12, np.floor, False, "toward_negative"),
        pytest.param(8, 11, np.trunc, False, "toward_zero", marks=pytest.mark.slow),
    ],
)
def test_a_model_outside_the_catalogue(
    length: int, bits: int, cut: Any, last: bool, alignment: str
) -> None:
    def multiply(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return model(a, b, c, length, bits, cut, last)

    found = probe(multiply, formats="bfloat16", k=32, size=16)
    assert found.order.length == length and found.fraction_bits == bits
    assert found.order.kind == ("last" if last else "chain")
    best = [x for x in found.inferred if x.accumulator == ("last" if last else "early")]
    assert {x.alignment_rounding for x in best} == {alignment}
    assert "nearest_even" in {x.output_rounding for x in best}
    assert all(wrong > 10 for _, wrong in found.closest)
    assert "0 of" in str(found) and f"F = {bits}" in str(found)


def test_numpy_sums_that_are_known() -> None:
    def rounded(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.add.accumulate(a[:, None, :] * b.T[None], axis=-1)[:, :, -1]

    found = probe(rounded, k=24)
    assert found.order.length == 1 and found.register == "float32"
    assert found.facts["products"] == "rounded before they are added"
    assert [x.accumulation for x in found.inferred] == ["sequential"]
    assert found.inferred[0].subnormals == "keep" and not found.inferred[0].fused_multiply


def test_exact_sums_are_told() -> None:
    def wide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)

    found = probe(wide, formats="float8_e4m3fn", k=8)
    assert found.order.kind == "exact" and found.fraction_bits is None
    assert {x.accumulation for x in found.inferred} == {"exact"}
    assert {x.output_rounding for x in found.inferred} == {"nearest_even"}


@pytest.mark.parametrize("multiply", [np.matmul, lambda a, b: jnp.matmul(a, b)])
def test_libraries_are_explained_or_left_open(multiply: Any) -> None:
    found = probe(multiply, k=32)
    if found.order.kind == "unresolved":
        assert "not resolved" in str(found)
    elif not found.inferred:
        assert "not checked" in found.facts["sums"] or ": 0 of 60 dots" in found.facts["sums"]


def test_an_engine_by_name() -> None:
    found = probe("fp32", k=16)
    assert found.parameters == (
        {"output": "float32", "accumulation": "sequential", "register": "float32",
         "subnormals": "flush"},
    )  # fmt: skip
    assert (("fp32",), 0) in found.closest and found.facts["c joins"].startswith("first")


def test_one_wrong_bit_is_a_mismatch() -> None:
    engine, fmt = lp.get_engine("fp32"), lp.get_format("float32")
    rows = np.ones((2, 4))
    dots = Dots(rows, rows, np.zeros(2))
    right = np.full(2, 4, np.float32).view(np.uint32)
    assert Observed(dots, right, (fmt, fmt)).mismatches(engine) == 0
    assert Observed(dots, right + np.array([0, 1], np.uint32), (fmt, fmt)).mismatches(engine) == 1


def test_what_cannot_be_probed_is_said() -> None:
    with pytest.raises(ValueError, match="takes block scales, and cannot be probed"):
        probe("blackwell.tcgen05.nvf4.fp32", formats="bfloat16")
    with pytest.raises(ValueError, match="`k` = 3: at least 4"):
        probe(np.matmul, k=3)
    with pytest.raises(ValueError, match="float8_e8m0fnu cannot be probed"):
        probe(np.matmul, formats="float8_e8m0fnu")
    with pytest.raises(TypeError, match="must be callable or an engine"):
        probe(3)  # type: ignore[arg-type] - a wrong type is the test
    with pytest.raises(TypeError, match="returned float64"):
        probe(lambda a, b: a.astype(float) @ b, k=4)
    with pytest.raises(ValueError, match="`multiply` returned shape"):
        probe(lambda a, b: (a @ b)[:1], k=4)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "--callable", "numpy:matmul", "--k", "8"]) == 0
    assert "order " in capsys.readouterr().out
    assert run(["probe"]) == 1 and "one of them" in capsys.readouterr().err
    assert run(["probe", "--callable", "numpy:no_such"]) == 1
    assert "numpy has no 'no_such'" in capsys.readouterr().err


EXPECTED: dict[tuple[str, str | None], dict[str, str]] = {
    ("hopper.wgmma.fp8.fp32", None): {
        "fused_length": "32", "fraction_bits": "13", "register": "e8m13",
        "output_rounding": "toward_zero",
    },
    ("ampere.mma.fp16.fp32", None): {
        "fused_length": "8", "fraction_bits": "24", "output_rounding": "toward_zero",
    },
    ("hopper.mma.fp8.fp32", None): {
        "fused_length": "16", "fraction_bits": "25", "interleave": "2", "accumulator": "separate",
        "output_rounding": "toward_zero",
    },
    ("blackwell.tcgen05.f8f6f4.fp32", None): {
        "fused_length": "32", "fraction_bits": "25", "output_rounding": "toward_zero",
    },
    ("cdna1.mfma.fp16.fp32", None): {"accumulation": "exact", "fused_length": "4"},
    ("cdna3.mfma.fp8.fp32", None): {
        "accumulation": "two_step", "fused_length": "16", "halves": "True",
    },
    ("fp32_fma", None): {"accumulation": "sequential", "fused_multiply": "True"},
    ("sequential.float16.nearest_even", "float16"): {
        "accumulation": "sequential", "register": "float16",
    },
    ("sequential.e6m9.toward_positive", "bfloat16"): {
        "register": "e6m9", "output_rounding": "toward_positive",
    },
    ("pairwise.float32", None): {"accumulation": "tree", "register": "float32"},
    ("chunked.16.float16.float32", "float16"): {
        "accumulation": "chunked", "fused_length": "16", "register": "float16", "outer": "float32",
    },
    ("compensated", None): {"accumulation": "compensated"},
    ("kulisch", None): {"accumulation": "exact"},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "formats"), EXPECTED)
def test_engines_are_found_out(name: str, formats: str | None) -> None:
    found = probe(name, formats=formats)
    assert len(found.parameters) == 1, found
    assert EXPECTED[name, formats].items() <= found.parameters[0].items(), found
    assert any(name in names and wrong == 0 for names, wrong in found.closest), found
    assert found.dots > 60


@pytest.mark.slow
def test_pairs_of_cdna2_are_found() -> None:
    found = probe("cdna2.mfma.fp16.fp32")
    assert (found.order.kind, found.order.length) == ("pairwise", 4)
    assert "of a flushed" in found.facts["subnormals"]
    assert ["cdna2.mfma.fp16.fp32"] == [name for names, _ in found.closest for name in names]


@pytest.mark.slow
def test_an_engine_of_the_readers_own(tmp_path: Path) -> None:
    path = tmp_path / "wide17.toml"
    path.write_text(WIDE17)
    found = probe(str(path))
    assert found.order.kind == "last" and found.order.length == 24
    assert found.fraction_bits == 17 and found.register == "float32"
    last = [x for x in found.inferred if x.accumulator == "last"]
    assert {x.output_rounding for x in last} == {"nearest_even"}
    assert all(wrong > 10 for _, wrong in found.closest)


@pytest.mark.slow
def test_torch_is_explained_or_left_open() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")

    def multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()

    test_libraries_are_explained_or_left_open(multiply)
