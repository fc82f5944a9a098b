"""`lowprec throughput` and `lowprec advise --device`, as a person meets them."""

from pathlib import Path

import numpy as np
import pytest

from lowprec.cli import run


def test_products_are_modelled_and_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["throughput", "--recipe", "deepseek_v3", "mxfp8", "--shape", "128x4096x7168"]
    assert run([*line, "--device", "h800", "b200"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert (
        "times bf16" in printed[0]
        and len(printed) == 6
        and printed[-1].startswith("modelled, not measured")
    )
    assert "h800" in printed[1] and "deepseek_v3" in printed[1] and " to " in printed[1]
    assert "float8, scaled at promotion" in printed[2]
    assert "float8, as written" in printed[4]


def test_what_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for shape, device, said in (
        ("128x4096", "h100", "`--shape` '128x4096' is no MxNxK"),
        ("0x1x1", "h100", "`m` = 0; a product's sizes are 1 or more"),
        ("1x1x1", "h1000", "no device is named 'h1000'; did you mean"),
    ):
        assert run(["throughput", "--shape", shape, "--device", device]) == 1
        assert said in capsys.readouterr().err


def test_advice_tells_the_time_on_a_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(7)
    shapes = {"fc.x": (64, 64), "fc.w": (64, 8), "fc.dy": (64, 8)}
    path = tmp_path / "dump.npz"
    arrays = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    np.savez(path, allow_pickle=False, **arrays)
    line = ["advise", "--operands", str(path), "--recipes", "mxfp4", "mxfp8", "--no-combinations"]
    goal = ["--role", "fprop", "--budget-bits", "5", "--out", str(tmp_path / "advice")]
    assert run([*line, *goal, "--device", "b200", "--batch", "4096"]) == 0
    printed = capsys.readouterr().out
    assert "on the B200 HGX, modelled, not measured:" in printed
    assert "times bf16" in printed and "float4, as written" in printed
    assert "4096" in (tmp_path / "advice" / "times.csv").read_text()
    for some in (["--batch", "4096"], ["--device", "b200", "--batch", "0"]):
        assert run([*line, *goal, *some]) == 1
        assert "use 1 or more tokens, and name a `--device`" in capsys.readouterr().err
    assert run([*line, *goal, "--device", "b2000"]) == 1
    assert "no device is named 'b2000'" in capsys.readouterr().err
