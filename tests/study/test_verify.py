"""`lowprec verify`: every check compares something, and notices what is wrong."""

import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowprec import catalogue
from lowprec.cli import run
from lowprec.engines import get_engine
from lowprec.engines.oracle import dot
from lowprec.numerics import get_format
from lowprec.study import device_product, hazard_probes, silicon, verify
from tests.silicon.captures import FOLDER

ROWS, K = 24, 4


def save_arrays(folder: Path) -> dict[str, np.ndarray]:
    """A capture such as a V100 would give, by the oracle: v100_fp16.npz and the arrays in it."""
    rng = np.random.default_rng(0)
    fp16 = get_format("float16")
    a, b = (rng.normal(size=(ROWS, K)).astype(np.float16).view(np.uint16) for _ in "ab")
    c = rng.normal(size=ROWS).astype(np.float32).view(np.uint32)
    found = {"a": a, "b": b, "c_f32": c}
    for output, key in (("fp32", "d_f32"), ("fp16", "d_f16")):
        engine = get_engine(f"volta.mma.fp16.{output}")
        rows = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        bits = [dot(engine, x, y, z, a_format=fp16, b_format=fp16) for x, y, z in rows]
        found[key] = np.array(bits, np.uint32)
    found["d_f16"] = found["d_f16"].view(np.float32).astype(np.float16).view(np.uint16)
    folder.mkdir(exist_ok=True)
    np.savez(folder / "v100_fp16.npz", allow_pickle=False, **found)
    return found


def save_text(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """The same in the layout of the captures' own repository."""
    where = folder / "V100" / "fp16"
    where.mkdir(parents=True)
    for key in "ab":
        bits = arrays[key].view(np.float16).astype(np.float32).view(np.uint32)
        lines = [" ".join(f"{x:08x}" for x in row) + " " for row in bits.tolist()]
        (where / f"{key}_V100_fp16.txt").write_text("\n".join(lines) + "\n")
    wide = arrays["d_f16"].view(np.float16).astype(np.float32).view(np.uint32)
    for name, bits in (("c", arrays["c_f32"]), ("d", arrays["d_f32"]), ("d_half", wide)):
        name = "d_V100_fp16" if name == "d_half" else f"{name}_V100_fp32"
        lines = [f"{x:032b}" for x in bits.tolist()]
        (where / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return where


def test_both_layouts_hold_the_same(tmp_path: Path) -> None:
    arrays = save_arrays(tmp_path / "arrays")
    save_text(tmp_path / "text", arrays)
    for folder in ("arrays", "text"):
        single, half = silicon.read_captures(tmp_path / folder)
        assert (single.engine.name, half.engine.name) == (
            "volta.mma.fp16.fp32",
            "volta.mma.fp16.fp16",
        )
        for one, key in ((single, "d_f32"), (half, "d_f16")):
            for got, name in zip(one[3:], ("a", "b", "c_f32", key), strict=True):
                want = arrays[name]
                np.testing.assert_array_equal(got, want)
                assert got.dtype == want.dtype


def test_captures_are_compared_and_a_wrong_bit_is_found(tmp_path: Path) -> None:
    arrays = save_arrays(tmp_path)
    (single, _) = silicon.read_captures(tmp_path)
    assert verify.check_captures([single])[:2] == (ROWS, 0)
    assert len(np.unique(arrays["d_f32"])) == ROWS
    single.d[3] ^= 1
    found = verify.check_captures([single])
    assert found[:2] == (ROWS, 1) and "wrong: v100_fp16.npz" in found.detail


def test_hopper_fp8_in_float32_ran_without_c(tmp_path: Path) -> None:
    ones = np.full((2, 32), 0x38, np.uint8)
    c, d = np.full(2, 0x3F800000, np.uint32), np.zeros(2, np.uint32)
    np.savez(tmp_path / "h100_e4m3.npz", allow_pickle=False, a=ones, b=ones, c_f32=c, d_f32=d)
    (one,) = silicon.read_captures(tmp_path)
    assert one.engine.name == "hopper.wgmma.fp8.fp32" and not one.c.any()
    np.savez(tmp_path / "h100_e4m3.npz", allow_pickle=False, a=ones, b=ones, c_f32=c, d_f16=d)
    (one,) = silicon.read_captures(tmp_path)
    assert one.engine.name == "hopper.mma.fp8.fp16" and one.c.all()


def test_unreadable_captures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a directory"):
        list(silicon.read_captures(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no captures in .*<gpu>_<format>.npz.*GPUs: v100"):
        list(silicon.read_captures(tmp_path))
    arrays = save_arrays(tmp_path / "arrays")
    where = save_text(tmp_path / "text", arrays)
    d = where / "d_V100_fp32.txt"
    for text, message in (
        (d.read_text()[32:], r"c \(24,\) and d \(23,\) do not fit"),
        ("3f800000\n" * ROWS, "lines of 32 binary digits expected, got '3f800000'"),
    ):
        d.write_text(text.lstrip("\n"))
        with pytest.raises(ValueError, match=message):
            list(silicon.read_captures(tmp_path / "text"))
    a = where / "a_V100_fp16.txt"
    for text, message in (
        ("3f800001 " * K + "\n", "1.0000001192092896 is not a float16 number"),
        ("3f8 zz\n", "hexadecimal numbers expected"),
        ("3f800000\n3f800000 0\n", "hexadecimal numbers expected"),
    ):
        a.write_text(text)
        with pytest.raises(ValueError, match=message):
            list(silicon.read_captures(tmp_path / "text"))
    (where / "b_V100_fp16.txt").unlink()
    a.write_text("3f800000\n")
    with pytest.raises(ValueError, match=r"cannot read .*b_V100_fp16.txt: No such file"):
        list(silicon.read_captures(tmp_path / "text"))
    del arrays["c_f32"]
    np.savez(tmp_path / "arrays" / "v100_fp16.npz", allow_pickle=False, **arrays)
    with pytest.raises(ValueError, match="no array c_f32"):
        list(silicon.read_captures(tmp_path / "arrays"))


def test_a_claim_that_does_not_hold_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = verify.check_catalogue()
    entries = sum(len(catalogue.names(kind)) for kind in verify._FINDERS)
    assert found.wrong == 0 and found.compared > entries > 150
    shutil.copytree(catalogue.folder(), tmp_path / "formats")
    entry = tmp_path / "formats" / "elements" / "float8_e4m3fn.toml"
    entry.write_text(entry.read_text().replace("max = 448.0", "max = 447.0"))
    monkeypatch.setattr(catalogue, "folder", lambda: tmp_path / "formats")
    found = verify.check_catalogue()
    assert found.wrong == 1 and "float8_e4m3fn.max is 448.0, not 447.0" in found.detail


@pytest.mark.slow
def test_probes_are_exact_and_notice_a_cast_that_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [probe() for probe in hazard_probes.PROBES]
    assert [probe.wrong for probe in found] == [0] * 4
    assert all(probe.compared >= 512 for probe in found)
    monkeypatch.setattr(hazard_probes, "cast", lambda x, fmt: x * np.float32(1.5))
    assert hazard_probes._subnormals().wrong > 500
    assert hazard_probes._dropped_roundings().wrong > 500


def test_engines_are_compared_and_a_wrong_result_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    fp32, native = [get_engine("fp32")], [get_engine("native")]
    assert verify.check_engines(fp32)[:2] == (225, 0)
    assert verify.check_engines(native).skipped
    real = verify.dot_codes
    monkeypatch.setattr(verify, "dot_codes", lambda layout, dots: real(layout, dots) ^ 1)
    found = verify.check_engines(fp32)
    assert found[:2] == (225, 225) and found.detail.endswith("wrong: fp32")


def test_the_fixture_is_compared_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "QUICK_ENGINES", ("cdna2.mfma.bf16.fp32",))
    found = verify.check_fixture(quick=True)
    assert found[:2] == (225, 0) and found.detail == "1 engines"
    real = verify.product_codes
    monkeypatch.setattr(verify, "product_codes", lambda *args: real(*args) ^ 0x10000)
    assert verify.check_fixture(quick=True).wrong > 100
    monkeypatch.setattr(catalogue, "__file__", str(tmp_path / "lowprec" / "catalogue.py"))
    assert verify.check_fixture().skipped


def test_the_command_prints_a_line_a_check_and_fails_where_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "QUICK_ENGINES", ("cdna2.mfma.bf16.fp32", "fp32"))
    monkeypatch.setattr(verify, "PROBES", verify.PROBES[:2])
    assert run(["verify", "--quick"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines].count("pass") == 6
    assert "captured silicon: no --silicon DIR" in lines[-2] and "real GPU: " in lines[-1]
    assert last.startswith("6 passed, 0 failed")
    arrays = save_arrays(tmp_path)
    arrays["d_f16"][0] ^= 1
    np.savez(tmp_path / "v100_fp16.npz", allow_pickle=False, **arrays)
    assert run(["verify", "--quick", "--silicon", str(tmp_path)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1 and "volta.mma.fp16.fp16" in failed[0] and "1 differ" in failed[0]


def test_a_check_that_raises_or_compares_nothing_has_failed(tmp_path: Path) -> None:
    def broken() -> verify.Outcome:
        raise ValueError("no\nluck")

    found = verify._run("x", broken)
    assert (found.status, found.detail) == ("FAIL", "ValueError: no luck")
    assert verify._run("x", lambda: verify.Outcome(0, 0, "nothing")).status == "FAIL"
    assert verify._run("x", lambda: verify.Outcome(0, 0, "why", skipped=True)).status == "skipped"
    (found,) = verify._verify_silicon(tmp_path)
    assert found.status == "FAIL" and "no captures in" in found.detail


def device(capability: str) -> Any:
    return types.SimpleNamespace(compute_capability=capability, device_kind="a GPU")


def test_a_device_is_compared_with_the_engines_of_its_architecture() -> None:
    names = [engine.name for engine in device_product.engines_of(device("9.0"))]
    assert names == ["hopper.mma.fp16.fp32", "hopper.wgmma.fp16.fp32"]
    for capability in ("6.1", ""):
        with pytest.raises(ValueError, match="no float16 engine is known for a GPU"):
            device_product.engines_of(device(capability))
    (volta,) = device_product.engines_of(device("7.0"))
    a, b = device_product.operands(volta.instruction_length or 0)
    values = [x.view(np.float16) for x in (a, b)]
    exact = values[0].astype(np.float32) @ values[1].astype(np.float32)
    differing = device_product.count_differing(volta, a, b, exact.view(np.uint32))
    assert 100 < differing < exact.size
    fp16 = get_format("float16")
    own = [
        [dot(volta, x, y, a_format=fp16, b_format=fp16) for y in b.T.tolist()] for x in a.tolist()
    ]
    assert device_product.count_differing(volta, a, b, np.array(own, np.uint32)) == 0


def test_a_gpu_of_which_nothing_is_claimed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = types.SimpleNamespace(**vars(device("6.1")), platform="gpu")
    monkeypatch.setattr(verify.jax, "devices", lambda: [unknown])
    found = verify.check_gpu()
    assert found.skipped and "no float16 engine is known for a GPU" in found.detail
    monkeypatch.setattr(verify.jax, "devices", lambda: [])
    assert verify.check_gpu() == verify.Outcome(0, 0, "JAX sees none", skipped=True)


@pytest.mark.slow
@pytest.mark.thorough
def test_everything_holds() -> None:
    folder = FOLDER if FOLDER.is_dir() else None
    found = list(verify.verify(folder))
    assert [str(report) for report in found if report.status == "FAIL"] == []
    assert sum(report.status == "pass" for report in found) >= 13
