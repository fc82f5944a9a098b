"""Test vectors and the C reference: what files hold, and that a compiler's program agrees."""

import dataclasses
import functools
import random
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from lowprec.cli import run
from lowprec.engines import Engine, get_engine
from lowprec.engines.c_reference import c_reference, why_no_reference
from lowprec.engines.directed import CASES, cases_of, draw_operands
from lowprec.engines.drawing import Layout
from lowprec.engines.oracle_number import Number, decoder
from lowprec.engines.vectors import (
    Vector,
    directed_vectors,
    layouts,
    result,
    vector_lines,
    write_vectors,
)
from tests.helpers import graded

WIDE17 = """
name = "wide17"
inputs = ["float8_e4m3fn", "float8_e5m2"]
output = "float32"
fused_length = 24
fraction_bits = 17
alignment_rounding = "toward_zero"
output_rounding = "nearest_even"
accumulator = "last"
"""
COMPILED = (
    "wide17",
    "hopper.wgmma.fp8.fp32",
    "blackwell.mma.fp8.fp16",
    "ampere.mma.tf32.fp32",
    "volta.mma.fp16.fp16",
    "blackwell.tcgen05.mxf8f6f4.fp32",
    "blackwell.tcgen05.nvf4.fp32",
    "cdna1.mfma.bf16.fp32",
)
COMPILER = shutil.which("cc") or shutil.which("gcc")
COUNT = 66


@pytest.fixture
def wide17(tmp_path: Path) -> Path:
    path = tmp_path / "wide17.toml"
    path.write_text(WIDE17)
    return path


@functools.cache
def vectors(name: str, place: int = 0) -> list[tuple[str, Vector]]:
    return list(directed_vectors(layouts(get_engine(name))[place], 10 * len(CASES)))


def compile_reference(source: str, folder: Path) -> Path:
    if COMPILER is None:
        pytest.skip("no C compiler: neither cc nor gcc is on the path")
    (folder / "reference.c").write_text(source)
    command = [COMPILER, "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O0"]
    program = folder / "reference"
    subprocess.run([*command, "-o", program, folder / "reference.c"], check=True)
    return program


def check(program: Path, text: str) -> tuple[int, str]:
    done = subprocess.run([program], input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def text_of(layout: Layout, count: int = COUNT) -> str:
    return "\n".join(vector_lines(layout, count)) + "\n"


def sample_layouts(engine: Engine) -> list[Layout]:
    """Of one instruction and of two and a half; with several formats a few pairs of them."""
    length = engine.instruction_length or 8
    return [*layouts(engine)[::7], *layouts(engine, length * 5 // 2 + 1)[1::9]]


@pytest.mark.parametrize("name", COMPILED)
def test_the_c_reference_agrees_with_the_oracle(name: str, wide17: Path) -> None:
    engine = get_engine(str(wide17) if name == "wide17" else name)
    program = compile_reference(c_reference(engine), wide17.parent)
    for layout in sample_layouts(engine):
        status, said = check(program, text_of(layout))
        assert (status, said.splitlines()[-1]) == (0, f"{name}: {COUNT} checked, 0 mismatches")


@pytest.mark.parametrize("name", graded(COMPILED))
def test_the_c_reference_agrees_on_many(name: str, wide17: Path) -> None:
    engine = get_engine(str(wide17) if name == "wide17" else name)
    program = compile_reference(c_reference(engine), wide17.parent)
    for layout in [*layouts(engine), *sample_layouts(engine)]:
        status, said = check(program, text_of(layout, 2000))
        assert (status, said.splitlines()[-1]) == (0, f"{name}: 2000 checked, 0 mismatches")


@pytest.mark.parametrize("name", ["chunk7", "odd"])
def test_the_c_reference_of_imagined_engines(name: str, tmp_path: Path) -> None:
    """Every parameter that hardware leaves alone."""
    wide = get_engine("blackwell.mma.fp8.fp16")
    changed = {
        "chunk7": dataclasses.replace(
            get_engine("hopper.wgmma.fp8.fp32"),
            name=name,
            fused_length=7,
            alignment_rounding="nearest_even",
            output_rounding="to_odd",
            zero_sign="kept",
            nan="quiet",
            min_exponent=None,
        ),
        "odd": dataclasses.replace(
            wide,
            name=name,
            interleave=3,
            fused_length=6,
            alignment_rounding="toward_negative",
            output_rounding="toward_positive",
            through=None,
            accumulator="last",
        ),
    }[name]
    program = compile_reference(c_reference(changed), tmp_path)
    for layout in layouts(changed, 41)[:2]:
        status, said = check(program, text_of(layout))
        assert (status, said.splitlines()[-1]) == (0, f"{name}: {COUNT} checked, 0 mismatches")


def test_the_c_reference_notices_a_change(wide17: Path) -> None:
    engine = get_engine(str(wide17))
    source, text = c_reference(engine), text_of(layouts(engine)[0], 110)
    for old, new in (
        ("FRACTION_BITS 17", "FRACTION_BITS 18"),
        ("FRACTION_BITS 17", "FRACTION_BITS 16"),
        ("FUSED_LENGTH 24", "FUSED_LENGTH 12"),
        ("OUTPUT_ROUNDING NEAREST_EVEN", "OUTPUT_ROUNDING TOWARD_ZERO"),
        ("ACCUMULATOR LAST", "ACCUMULATOR EARLY"),
    ):
        assert source.count(f"#define {old}\n") == 1
        wrong = compile_reference(
            source.replace(f"#define {old}\n", f"#define {new}\n"), wide17.parent
        )
        status, said = check(wrong, text)
        assert status == 1 and "got " in said and not said.endswith(" 0 mismatches\n")


def test_the_c_reference_refuses_what_it_cannot_read(wide17: Path) -> None:
    engine = get_engine(str(wide17))
    program = compile_reference(c_reference(engine), wide17.parent)
    text = text_of(layouts(engine)[0], 20)
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line[0] != "#")
    flipped = lines[first][:-1] + ("0" if lines[first][-1] != "0" else "1")
    status, said = check(program, text.replace(lines[first], flipped))
    assert status == 1 and said.startswith(f"line {first + 1}: got ") and "1 mismatches" in said
    for broken, message in (
        (text.replace(lines[first], lines[first][:-9]), "not 50 hexadecimal numbers"),
        (text.replace(lines[first], "zz" + lines[first][2:]), "not 50 hexadecimal numbers"),
        (text.replace("# k = 24", "# k = 0"), "from 1 to"),
        (text.replace("float8_e4m3fn", "float4_e2m1fn"), "is none of this engine's"),
        ("\n".join(lines[first:]) + "\n", "a header must name"),
    ):
        status, said = check(program, broken)
        assert status == 2 and message in said
    assert check(program, "")[0] == 2


def numbers(name: str, vector: Vector, place: int = 0) -> tuple[list[Number], list[Number], Number]:
    """The values of a, b and the result."""
    layout = layouts(get_engine(name))[place]
    a, b = ([decoder(fmt)(x) for x in codes] for fmt, codes in
            ((layout.a, vector.operands.a), (layout.b, vector.operands.b)))  # fmt: skip
    return a, b, decoder(layout.engine.output)(vector.result)


@pytest.mark.parametrize("name", COMPILED[1:])
def test_cases_are_what_they_are_called(name: str) -> None:
    drawn = vectors(name)
    layout = layouts(get_engine(name))[0]
    counts = Counter(case for case, _ in drawn)
    assert tuple(counts) == cases_of(layout) and max(counts.values()) - min(counts.values()) <= 1
    results = {case: set[int]() for case in counts}
    for case, vector in drawn:
        a, b, out = numbers(name, vector)
        results[case].add(vector.result)
        one = vector.operands
        codes = [*one.a_scales, *one.b_scales]
        scales = [decoder(layout.scale)(x) for x in codes] if layout.scale else []
        c = decoder(layout.engine.output)(one.c)
        if case == "infinities and NaNs":
            assert any(x.kind != "finite" for x in (*a, *b, *scales, c))
        else:
            assert all(x.kind == "finite" for x in (*a, *b, *scales, c))
        if case == "sign of zero":
            assert c.is_zero
        if case == "zeros":
            assert sum(x.is_zero for x in (*a, *b)) > 0
        if case == "normal":
            assert out.kind == "finite"
    assert len(results["normal"]) >= 9 and len(set().union(*results.values())) > len(drawn) / 3


def test_overflow_subnormals_and_both_zeros_are_reached() -> None:
    kinds = Counter[str]()
    for name in COMPILED[1:]:
        for case, vector in vectors(name):
            out = numbers(name, vector)[2]
            kinds[f"{case}: {out.kind}"] += 1
            kinds["-0"] += out.is_zero and out.negative
            lowest = get_engine(name).output.min_exponent
            kinds["subnormal"] += not out.is_zero and out.kind == "finite" and out.binade < lowest
    wanted = ("overflow: infinity", "infinities and NaNs: nan", "infinities and NaNs: infinity")
    for kind in (*wanted, "subnormal"):
        assert kinds[kind] >= 3, (kind, kinds)
    # Fused sums have one zero; one added in an operation of its own has both.
    assert kinds["-0"] >= 1


@pytest.mark.parametrize(
    "name", [x for x in COMPILED if x not in ("wide17", "cdna1.mfma.bf16.fp32")]
)
def test_alignment_edges_tell_one_bit(name: str) -> None:
    layout = layouts(get_engine(name))[-1]
    rng = random.Random(0)
    drawn = [draw_operands(layout, "alignment edges", rng) for _ in range(60)]
    right = [result(layout, one) for one in drawn]
    bits = layout.engine.fraction_bits
    assert bits is not None
    for change in (-1, 1):
        engine = dataclasses.replace(layout.engine, fraction_bits=bits + change)
        other = dataclasses.replace(layout, engine=engine)
        assert sum(result(other, x) != y for x, y in zip(drawn, right, strict=True)) >= 1


@pytest.mark.parametrize(
    "name", ["ampere.mma.tf32.fp32", "hopper.mma.bf16.fp32", "blackwell.tcgen05.mxf8f6f4.fp32"]
)
def test_the_floor_of_the_alignment_tells_one_bit(name: str) -> None:
    layout = layouts(get_engine(name))[0]
    rng = random.Random(0)
    drawn = [draw_operands(layout, "floor of the alignment", rng) for _ in range(40)]
    floor = layout.engine.min_exponent
    assert floor is not None
    other = dataclasses.replace(
        layout, engine=dataclasses.replace(layout.engine, min_exponent=floor + 1)
    )
    assert sum(result(layout, one) != result(other, one) for one in drawn) >= 5


def test_ties_tell_how_they_are_rounded() -> None:
    layout = layouts(get_engine("volta.mma.fp16.fp16"))[0]
    rng = random.Random(0)
    drawn = [draw_operands(layout, "ties of the output", rng) for _ in range(60)]
    found = {
        mode: [
            result(dataclasses.replace(layout, engine=changed), one)
            for changed in [dataclasses.replace(layout.engine, output_rounding=mode)]
            for one in drawn
        ]
        for mode in ("nearest_even", "nearest_away", "nearest_toward_zero", "toward_zero", "to_odd")
    }
    rows = list(found.values())
    for i, x in enumerate(rows):
        for y in rows[i + 1 :]:
            assert x != y


def test_files_have_a_header_and_the_columns_it_names(tmp_path: Path) -> None:
    paths = write_vectors(get_engine("blackwell.tcgen05.nvf4.fp32"), tmp_path, count=22)
    assert [path.name for path in paths] == [
        f"blackwell.tcgen05.nvf4.fp32.float4_e2m1fn.float4_e2m1fn.{scale}.k64.hex"
        for scale in ("ue4m3", "float8_e8m0fnu")
    ]
    lines = paths[0].read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert header[:3] == [
        "# engine = blackwell.tcgen05.nvf4.fp32",
        "# a_format = float4_e2m1fn",
        "# b_format = float4_e2m1fn",
    ]
    assert "# scale_format = ue4m3" in header and "# k = 64" in header
    dots = [line.split() for line in lines if not line.startswith("#")]
    assert len(dots) == 22
    for words in dots:
        assert [len(word) for word in words] == [1] * 128 + [2] * 8 + [8] * 2
        assert all(int(word, 16) >= 0 for word in words)


def test_a_seed_repeats_its_vectors() -> None:
    layout = layouts(get_engine("volta.mma.fp16.fp32"))[0]
    lines = list(vector_lines(layout, 33))
    assert lines == list(vector_lines(layout, 33))
    others = list(vector_lines(layout, 33, seed=1))
    assert sum(x == y for x, y in zip(lines, others, strict=True)) < 25


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cdna3.mfma.bf8.fp32", "accumulation = 'two_step'"),
        ("cdna2.mfma.fp16.fp32", "accumulation = 'pairwise'"),
        ("fp32", "accumulation = 'sequential'"),
    ],
)
def test_others_have_vectors_and_no_reference(
    name: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["vectors", "--engine", name, "--count", "20", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"no C reference is generated: {why}" in said
    assert not list(out.glob("*.c"))
    for path in out.glob("*.hex"):
        assert len([x for x in path.read_text().splitlines() if x[0] != "#"]) == 20
    assert list(out.glob("*.hex"))
    with pytest.raises(ValueError, match=f"no C reference of engine {name!r}: {why}"):
        c_reference(get_engine(name))


def test_the_command_writes_vectors_and_the_reference(
    wide17: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = wide17.parent / "out"
    assert run(["vectors", "--engine", str(wide17), "--count", "11", "--out", str(out)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert [Path(path).suffix for path in written] == [".hex"] * 4 + [".c"]
    assert all(Path(path).stat().st_size > 0 for path in written)
    assert run(["vectors", "--engine", "native", "--out", str(out)]) == 1
    assert "has no defined bits" in capsys.readouterr().err


def test_errors(tmp_path: Path) -> None:
    fp8 = get_engine("hopper.wgmma.fp8.fp32")
    with pytest.raises(ValueError, match=r"`k` = 0; a dot product of 1 to"):
        layouts(fp8, 0)
    with pytest.raises(ValueError, match=r"`count` = 0; at least 1"):
        write_vectors(fp8, tmp_path, count=0)
    with pytest.raises(ValueError, match="rounds stochastic, by random words"):
        layouts(get_engine("sequential.e5m2.stochastic"))
    with pytest.raises(ValueError, match="has no defined bits"):
        layouts(get_engine("cdna4.mfma.fp8.fp32"))
    spaced = dataclasses.replace(fp8, name="../mine */")
    for function in (c_reference, lambda engine: write_vectors(engine, tmp_path)):
        with pytest.raises(ValueError, match="files are named after it"):
            function(spaced)
    far = dataclasses.replace(fp8, min_exponent=-2000)
    assert "span the exponents" in str(why_no_reference(far))
    drawn = dataclasses.replace(fp8, output_rounding="stochastic")
    assert "takes random words" in str(why_no_reference(drawn))
