"""Where peers give other values, as data: both sides are computed, and one by the oracle too."""

import math
import tomllib
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import lowprec as lp
from lowprec.numerics import oracle

pytestmark = pytest.mark.slow

ENTRIES = tomllib.loads((Path(__file__).parent / "disagreements.toml").read_text())["entry"]


def label(entry: dict[str, Any]) -> str:
    return f"{entry['peer']}-{entry['format']}-{entry['source']}"


def by_ml_dtypes(x: np.ndarray, name: str) -> Any:
    with np.errstate(all="ignore"):
        return x.astype(getattr(ml_dtypes, name)).astype(np.float64)


def by_gfloat(x: np.ndarray, name: str) -> Any:
    gfloat = pytest.importorskip("gfloat", reason="needs the extra `peers`")
    formats = pytest.importorskip("gfloat.formats", reason="needs the extra `peers`")
    unsigned = gfloat.Signedness.Unsigned
    peer = {
        "float8_e8m0fnu": formats.format_info_ocp_e8m0,
        "mxint8": formats.format_info_ocp_int8,
        "binary6p3uf": formats.format_info_p3109(6, 3, unsigned, gfloat.Domain.Finite),
    }[name]
    return gfloat.round_ndarray(peer, x, gfloat.RoundMode.TiesToEven, True)


def by_torch(x: np.ndarray, name: str) -> Any:
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    return torch.from_numpy(x).to(getattr(torch, name)).to(torch.float32).numpy()


def by_torchao(x: np.ndarray, name: str) -> Any:
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="needs torchao")
    assert name == "mxfp8_e4m3"
    scales, codes = mx.to_mx(torch.from_numpy(block_of(x)), torch.float8_e4m3fn, 32)
    power = np.ldexp(1.0, scales.view(torch.uint8).numpy().astype(int) - 127)
    return (codes.to(torch.float64).numpy() * power)[0, : len(x)].astype(np.float32)


def block_of(x: np.ndarray) -> np.ndarray:
    """A block that ends in repetitions of the last number."""
    return np.pad(x, (0, 32 - len(x)), mode="edge")[None]


PEERS = {"ml_dtypes": by_ml_dtypes, "gfloat": by_gfloat, "torch": by_torch, "torchao": by_torchao}


def same(a: Any, b: list[float]) -> bool:
    pairs = zip(np.asarray(a, np.float64).tolist(), b, strict=True)
    return all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in pairs)


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_theirs(entry: dict[str, Any]) -> None:
    x = np.array(entry["inputs"], entry["source"])
    with np.errstate(all="ignore"):
        got = PEERS[entry["peer"]](x, entry["format"])
    assert same(got, entry["theirs"]), f"{got}: the peer has changed, so must the list"


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_ours(entry: dict[str, Any]) -> None:
    x, name = np.array(entry["inputs"], entry["source"]), entry["format"]
    if entry["peer"] == "torchao":
        got = lp.quantize(block_of(x), name).dequantize()[0, : len(x)]
        assert same(got, entry["ours"])
        return
    with jax.enable_x64(entry["source"] == "float64"):
        codes = lp.encode(x, name).tolist()
    assert same([float(oracle.decode(code, name)) for code in codes], entry["ours"])
    rounding: Any = {"rounding": "nearest_even", "overflow": "saturate"}
    assert codes == [oracle.encode(float(value), name, **rounding) for value in x.tolist()]


def test_every_entry_disagrees_and_says_why() -> None:
    assert {entry["peer"] for entry in ENTRIES} == set(PEERS)
    for entry in ENTRIES:
        assert not same(entry["ours"], entry["theirs"]) and len(entry["why"]) > 40
