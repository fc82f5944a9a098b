"""The search for the arithmetic of a dumped product."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import lowprec as lp
from lowprec.cli import run
from lowprec.engines.oracle import dot
from lowprec.numerics import oracle
from lowprec.study import identify_sums
from lowprec.study.identify import identify
from lowprec.study.identify_fold import fused_multiply_add
from tests.helpers import SPECIALS, random_words

E4M3 = ml_dtypes.float8_e4m3fn
K = 128


def operands(m: int = 3, n: int = 4, k: int = K, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, k)).astype(E4M3), rng.normal(size=(k, n)).astype(E4M3)


def promoted(
    a: np.ndarray, b: np.ndarray, name: str, every: int, a_scale: np.ndarray, b_scale: np.ndarray
) -> np.ndarray:
    """total = fma(fl(sa * sb), partial, total), in Python integers."""
    engine, fmt = lp.get_engine(name), lp.get_format("float8_e4m3fn")
    x, y = a.view(np.uint8), b.view(np.uint8)
    out = np.empty((len(a), b.shape[1]), np.uint32)
    for i, j in np.ndindex(*out.shape):
        total = 0
        for tile, k in enumerate(range(0, a.shape[1], every)):
            codes = x[i, k : k + every].tolist(), y[k : k + every, j].tolist()
            partial = dot(engine, *codes, a_format=fmt, b_format=fmt)
            scales = int(a_scale[i, tile].view(np.uint32)), int(b_scale[tile, j].view(np.uint32))
            total = oracle.fused_multiply_add(oracle.multiply(*scales), partial, total)
        out[i, j] = total
    return out.view(np.float32)


def test_the_fused_multiply_add_is_rounded_once() -> None:
    words = random_words(3000).reshape(3, -1).copy()
    # A third of products about as large as the addend, and a third of subnormal results.
    words[:2, :333] = words[:2, :333] & 0x83FFFFFF | 0x3C000000
    words[2, :333] = words[2, :333] & 0x8FFFFFFF | 0x30000000
    words[0, 333:666] = words[0, 333:666] & 0x80FFFFFF | 0x20000000
    words[1, 333:666] = words[1, 333:666] & 0x80FFFFFF | 0x1F000000
    words[2, 333:666] &= 0x80FFFFFF
    edges = np.array([(x, y, z) for x in SPECIALS for y in SPECIALS for z in SPECIALS], np.uint32)
    words = np.concatenate([words, edges.T], axis=1)
    x, y, z = (word.view(np.float32) for word in words)
    got = fused_multiply_add(x, y, z).view(np.uint32)
    want = np.array([oracle.fused_multiply_add(*map(int, row)) for row in words.T], np.uint32)
    nan = np.isnan(want.view(np.float32))
    assert (got[~nan] == want[~nan]).all() and np.isnan(got.view(np.float32)[nan]).all()
    assert len(np.unique(want)) > 900


@pytest.mark.slow
def test_scales_and_promotion_are_found_and_a_wrong_bit_refutes_them() -> None:
    a, b = operands()
    rng = np.random.default_rng(1)
    a_scale, b_scale = (rng.uniform(0.01, 1, s).astype(np.float32) for s in ((3, 2), (2, 4)))
    out = promoted(a, b, "hopper.wgmma.fp8.fp32", 64, a_scale, b_scale)
    found = identify(a, b, out, scales=(a_scale, b_scale))
    assert found.fitting and found.closest is None
    for candidate in found.fitting:
        above = candidate.above
        assert candidate.engines == ("hopper.wgmma.fp8.fp32",)
        assert (above.promote_every, above.scales, above.output) == (64, "promotion", "float32")
    assert {x.above.promotion for x in found.fitting if x.above.order == "sequential"} == {"fma"}
    out[1, 2] *= 1.25
    wrong = identify(a, b, out, scales=(a_scale, b_scale))
    assert not wrong.fitting and wrong.closest is not None and wrong.first is not None
    assert wrong.closest.engines == ("hopper.wgmma.fp8.fp32",)
    assert wrong.closest.above.promotion == "fma" and wrong.share == 1 / 12
    assert (wrong.first.row, wrong.first.column) == (1, 2)
    assert wrong.first.given == int(out[1, 2].view(np.uint32)) != wrong.first.predicted
    assert "none fits" in str(wrong) and "8.33% of outputs differ" in str(wrong)


def test_every_engine_that_fits_is_named() -> None:
    a, b = np.ones((2, 32), E4M3), np.ones((32, 2), E4M3)
    found = identify(a, b, np.full((2, 2), 32, np.float32))
    names = {name for x in found.fitting for name in x.engines}
    assert {"hopper.wgmma.fp8.fp32", "ada.mma.fp8.fp32", "kulisch", "fp32"} <= names
    assert {x.above.output for x in found.fitting} == {"float32", "bfloat16", "float16"}
    assert "do not tell them apart" in str(found)
    # E4M3's type is taken at its word; 448 is no float8_e4m3fnuz, and no float16 engine is asked.
    assert "ampere.mma.fp16.fp32" in found.dropped and "cdna3.mfma.fp8.fp32" in found.dropped


def test_c_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = operands(2, 3, 64)
    c = np.random.default_rng(2).normal(size=(2, 3)).astype(np.float32)
    fmt, engine = lp.get_format("float8_e4m3fn"), lp.get_engine("ada.mma.fp8.fp32")
    x, y, start = a.view(np.uint8), b.view(np.uint8), c.view(np.uint32)
    bits = [
        dot(engine, x[i].tolist(), y[:, j].tolist(), int(start[i, j]), a_format=fmt, b_format=fmt)
        for i, j in np.ndindex(2, 3)
    ]
    out = np.array(bits, np.uint32).view(np.float32).reshape(2, 3)
    wide = {"a": a.astype(np.float32), "b": b.astype(np.float32), "c": c, "out": out}
    np.savez(tmp_path / "dump.npz", allow_pickle=False, **wide)
    dump = str(tmp_path / "dump.npz")
    assert run(["identify", "--a", dump, "--b", dump, "--c", dump, "--out", dump]) == 0
    shown = capsys.readouterr().out
    assert "1 fit every bit" in shown and "ada.mma.fp8.fp32" in shown
    np.save(tmp_path / "a.npy", wide["a"][:, :8])
    other = str(tmp_path / "a.npy")
    assert run(["identify", "--a", other, "--b", dump, "--out", dump]) == 1
    assert "shapes do not fit" in capsys.readouterr().err


def test_what_does_not_fit_is_said() -> None:
    a, b = operands(2, 2, 32)
    out = np.zeros((2, 2), np.float32)
    with pytest.raises(TypeError, match="`a` is float64"):
        identify(a.astype(np.float64), b, out)
    with pytest.raises(ValueError, match="shapes do not fit"):
        identify(a, b.T, out)
    with pytest.raises(ValueError, match="`scales` holds 1 arrays"):
        identify(a, b, out, scales=(out,))
    with pytest.raises(ValueError, match="tiles must divide"):
        identify(a, b, out, scales=(np.ones((2, 5)), np.ones((5, 2))))


@pytest.mark.slow
@pytest.mark.parametrize("exactly", [True, False])
def test_a_gemm_is_identified(exactly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the oracle, and by the compiled engine where there are too many outputs for it."""
    monkeypatch.setattr(identify_sums, "_AT_MOST", 10**9 if exactly else 3000)
    a, b = operands(8, 8, 512)
    out = np.asarray(lp.matmul(a, b, engine="hopper.wgmma.fp8.fp32"))
    found = identify(a, b, out)
    assert [x.engines for x in found.fitting] == [("hopper.wgmma.fp8.fp32",)]
    assert found.fitting[0].above.promote_every is None
    assert found.fitting[0].above.order == "sequential"
