"""The engines of the catalogue: complete, cited, honest about what they rest on."""

import dataclasses
import itertools
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lowprec import catalogue
from lowprec.engines.engine import LEVELS, Engine, Evidence, get_engine, list_engines
from lowprec.numerics import get_format

PLAIN = {"fp32", "fp32_fma", "native", "kulisch", "compensated"}
NVIDIA = {"volta", "turing", "ampere", "ada", "hopper", "blackwell", "rtx_blackwell"}
ARCHITECTURES = NVIDIA | {f"cdna{generation}" for generation in (1, 2, 3, 4)}
SIXTEEN_AND_UP = "{fp16.fp32,fp16.fp16,bf16.fp32,tf32.fp32}"
DESIGNED = (
    "volta.mma.fp16.{fp32,fp16}",
    "turing.{mma,mma_m8n8k4}.fp16.{fp32,fp16}",
    "{ampere,ada}.mma." + SIXTEEN_AND_UP,
    "ada.mma.fp8.{fp32,fp16}",
    "hopper.{mma,wgmma}." + SIXTEEN_AND_UP,
    "hopper.{mma,wgmma}.fp8.{fp32,fp16}",
    "blackwell.mma." + SIXTEEN_AND_UP,
    "blackwell.mma.fp8.{fp32,fp16}",
    "blackwell.tcgen05." + SIXTEEN_AND_UP,
    "blackwell.tcgen05.f8f6f4.{fp32,fp16}",
    "blackwell.tcgen05.{mxf8f6f4,mxf4,nvf4}.fp32",
    "rtx_blackwell.mma.f8f6f4.{fp32,fp16}",
    "rtx_blackwell.mma.{mxf8f6f4,mxf4,nvf4}.fp32",
    "cdna1.mfma.{fp16,bf16}.fp32",
    "cdna2.mfma.{fp16,bf16_1k,bf16}.fp32",
    "cdna3.mfma.{fp16,bf16,xf32,fp8,bf8}.fp32",
    "cdna4.mfma.{fp16,bf16,fp8}.fp32",
    "cdna4.mfma_scale.f8f6f4.fp32",
)
HARDWARE = sorted(set(list_engines()) - PLAIN)


def expanded(pattern: str) -> list[str]:
    """The names that braces stand for."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    # Outside braces there is no comma, so such a part is one choice.
    return ["".join(choice) for choice in itertools.product(*parts)]


def table(name: str) -> dict[str, Any]:
    return tomllib.loads((catalogue.folder() / "engines" / f"{name}.toml").read_text())


def test_the_list_is_complete() -> None:
    designed = {name for pattern in DESIGNED for name in expanded(pattern)}
    assert designed == set(HARDWARE)
    assert set(list_engines()) >= PLAIN and len(designed) == 62


@pytest.mark.parametrize("name", list_engines())
def test_every_engine_has_a_citation_and_evidence_with_its_domain(name: str) -> None:
    engine = get_engine(name)
    entry = catalogue.lookup("engines", name)
    assert entry.citation is not None and entry.citation.document
    assert name in PLAIN or entry.citation.section
    assert engine.evidence is not None
    assert engine.evidence.level in LEVELS and len(engine.evidence.domain.split()) >= 6
    # A source's file and lines mean something in one revision alone.
    assert not entry.citation.file or entry.citation.revision
    assert name.startswith("cdna4") or name in PLAIN or entry.citation.file
    shown = repr(engine)
    assert shown.startswith(f"Engine(name={name!r}") and f"[{engine.evidence.level}]" in shown
    assert engine.evidence.domain in shown and LEVELS[engine.evidence.level] in shown


@pytest.mark.parametrize("name", HARDWARE)
def test_names_say_what_an_engine_is(name: str) -> None:
    engine = get_engine(name)
    architecture, instruction, operands, output = name.split(".")
    assert architecture in ARCHITECTURES
    assert instruction in {"mma", "mma_m8n8k4", "wgmma", "tcgen05", "mfma", "mfma_scale"}
    assert engine.output.name == {"fp32": "float32", "fp16": "float16"}[output]
    kinds = {fmt.name for fmt in engine.inputs}
    one = {"fp16": "float16", "bf16": "bfloat16", "bf16_1k": "bfloat16"}
    one |= {"tf32": "tensorfloat32", "xf32": "tensorfloat32", "bf8": "float8_e5m2fnuz"}
    one |= {"mxf4": "float4_e2m1fn", "nvf4": "float4_e2m1fn"}
    finite = "fnuz" if architecture == "cdna3" else ""
    many = {"fp8": {f"float8_e4m3{finite or 'fn'}", f"float8_e5m2{finite}"}}
    many["f8f6f4"] = many["mxf8f6f4"] = {
        *("float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn")
    }
    assert kinds == ({one[operands]} if operands in one else many[operands])
    scaled = operands in ("mxf8f6f4", "mxf4", "nvf4") or instruction == "mfma_scale"
    assert bool(engine.scale_formats) == scaled
    assert engine.truncate_operands == (operands in ("tf32", "xf32"))
    if architecture in NVIDIA:
        assert engine.nan == "all_ones" and engine.alignment_rounding == "toward_zero"
        rounding = "toward_zero" if output == "fp32" else "nearest_even"
        assert engine.output_rounding == rounding and engine.zero_sign == "positive"


@pytest.mark.parametrize("name", HARDWARE)
def test_disputes_name_a_parameter(name: str) -> None:
    """A dispute is of use only with the key that gives the other reading."""
    evidence = get_engine(name).evidence
    assert evidence is not None
    if get_engine(name).accumulation == "unknown":
        assert not evidence.dispute
        return
    keys = {field.name for field in dataclasses.fields(Engine)}
    assert keys & set(re.findall(r"[a-z_]+", evidence.dispute))


@pytest.mark.parametrize(
    ("name", "level", "said"),
    [
        ("hopper.wgmma.fp8.fp32", "V", "without c"),
        ("hopper.wgmma.fp8.fp16", "O", "no captured bits"),
        ("hopper.wgmma.fp16.fp32", "O", "no captured bits of wgmma"),
        ("hopper.mma.fp8.fp16", "V", "fraction_bits does not"),
        ("hopper.mma.fp8.fp32", "?", "by analogy"),
        ("hopper.mma.tf32.fp32", "V", "half a step"),
        ("blackwell.mma.fp8.fp32", "V", "mma.sync"),
        ("blackwell.tcgen05.nvf4.fp32", "O", "no captured bits"),
        ("turing.mma.fp16.fp32", "?", "no captured bits"),
        ("cdna3.mfma.bf16.fp32", "?", "no captured bits"),
    ],
)
def test_evidence_claims_no_more_than_was_seen(name: str, level: str, said: str) -> None:
    evidence = get_engine(name).evidence
    assert evidence is not None
    assert evidence.level == level and said in evidence.domain


def test_captured_bits_are_claimed_for_those_gpus_alone_that_were_captured() -> None:
    captured = ("V100", "A100", "A2", "RTX 1000 Ada", "L40S", "H100", "H200", "B200")
    seen = [name for name in HARDWARE if table(name)["evidence"]["level"] == "V"]
    assert {name.split(".")[0] for name in seen} == NVIDIA - {"turing", "rtx_blackwell"}
    for name in seen:
        domain = table(name)["evidence"]["domain"]
        assert domain.startswith(captured) and "N(0,1)" in domain, name
        assert "specials" in domain, f"{name}: no captured row has an Inf or a NaN"


def test_what_nobody_knows_is_listed_and_said_so() -> None:
    unknown = [name for name in HARDWARE if get_engine(name).accumulation == "unknown"]
    assert unknown == [name for name in HARDWARE if name.startswith("cdna4.")] and unknown
    for name in unknown:
        evidence = get_engine(name).evidence
        assert evidence is not None and evidence.level == "?" and "no model" in evidence.domain
        # No number is given that would be a guess.
        assert get_engine(name).fraction_bits is get_engine(name).fused_length is None


def test_repr_shows_what_differs_from_the_defaults() -> None:
    shown = repr(get_engine("blackwell.tcgen05.nvf4.fp32"))
    for part in ("scale_formats=['ue4m3', 'float8_e8m0fnu']", "group=16", "fraction_bits=35"):
        assert part in shown
    assert "interleave" not in shown and "tile" not in shown
    mine = Engine(name="mine", output=get_format("float32"), accumulation="exact")
    assert repr(mine) == "Engine(name='mine', output=float32, accumulation=exact)"


def test_derived_parameters() -> None:
    emulated = get_engine("hopper.mma.fp8.fp32")
    assert emulated.instruction_length == 32 and emulated.register_format.name == "float32"
    assert get_engine("hopper.wgmma.fp8.fp32").register_format.name == "e8m13"
    assert get_engine("kulisch").instruction_length is None


TEN_LINES = """
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


def test_an_engine_of_ones_own_is_ten_lines(tmp_path: Path) -> None:
    assert TEN_LINES in (catalogue.folder() / "README.md").read_text()
    assert len(TEN_LINES.strip().splitlines()) == 10
    path = tmp_path / "wide17.toml"
    path.write_text(TEN_LINES)
    engine = get_engine(str(path))
    assert engine == Engine(
        name="wide17",
        inputs=(get_format("float8_e4m3fn"), get_format("float8_e5m2")),
        output=get_format("float32"),
        fused_length=24,
        fraction_bits=17,
        accumulator="last",
        evidence=Evidence(level="P", domain="imagined"),
    )
    assert get_engine(engine) is engine and hash(engine) == hash(get_engine(str(path)))
    assert dataclasses.replace(engine, fraction_bits=18) != engine


def test_every_key_is_documented() -> None:
    text = (catalogue.folder() / "README.md").read_text()
    section = text[text.index("## engines/") : text.index("## recipes/")]
    for field in dataclasses.fields(Engine):
        assert field.name == "name" or f"`{field.name}`" in section or f"[{field.name}]" in section
        assert re.search(rf"\b{field.name}\b", str(Engine.__doc__)), field.name


# Families


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (
            "sequential.float16.stochastic",
            {"accumulation": "sequential", "register": "float16", "output_rounding": "stochastic"},
        ),
        ("sequential.bfloat16.toward_zero", {"register": "bfloat16", "subnormals": "flush"}),
        ("sequential.e6m9.nearest_even", {"register": "e6m9", "subnormals": "keep"}),
        (
            "chunked.64.e6m9.float32",
            {
                "accumulation": "chunked",
                "fused_length": 64,
                "register": "e6m9",
                "outer": "float32",
                "subnormals": "flush",
            },
        ),
        ("chunked.16.float16.float16", {"outer": "float16", "subnormals": "keep"}),
        ("pairwise.float16", {"accumulation": "tree", "register": "float16"}),
    ],
)
def test_families_are_found_by_name(name: str, fields: dict[str, Any]) -> None:
    engine = get_engine(name)
    assert engine.name == name and engine.output.name == "float32" and name not in list_engines()
    for key, want in fields.items():
        got = getattr(engine, key)
        assert getattr(got, "name", got) == want


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sequential.float16", r"'sequential.float16' is none of sequential.<format>.<rounding>"),
        ("pairwise.float16.float16", r"none of .*pairwise.<format>"),
        ("chunked.64.float16", r"none of .*chunked.<length>.<inner>.<outer>"),
        ("sequential.float17.nearest_even", "no format is named 'float17'"),
        ("sequential.float16.nearest", "the rounding is one of nearest_even, .*stochastic"),
        ("sequential.int8.nearest_even", "int8 cannot accumulate; .*such as float16"),
        ("sequential.float8_e4m3fn.nearest_even", "float8_e4m3fn cannot accumulate"),
        ("pairwise.e11m4", "e11m4 cannot accumulate; .*2 to 8 exponent bits"),
        ("pairwise.nf4", "nf4 cannot accumulate"),
        ("chunked.64.float16.nf4", "nf4 cannot accumulate"),
        ("chunked.0.float16.float32", "the length of a chunk is a number from 1 to 1024"),
        ("chunked.1025.float16.float32", "the length of a chunk is a number from 1 to 1024"),
        ("chunked.-4.float16.float32", "the length of a chunk is a number from 1 to 1024"),
    ],
)
def test_members_that_a_family_lacks(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_engine(name)


# What is refused


def test_unknown_names_list_near_matches() -> None:
    with pytest.raises(ValueError, match=r"no engine is named .*did you mean hopper\.wgmma\.fp8"):
        get_engine("hopper.wgmma.fp8.fp64")
    with pytest.raises(ValueError, match=r"did you mean .*cdna4\.mfma"):
        get_engine("cdna4.mfma.f16.fp32")
    with pytest.raises(TypeError, match="`engine` must be an engine's name, a path"):
        get_engine(None)  # type: ignore[arg-type] - a wrong type is the test


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": get_format("bfloat16")}, "output must be float32 or float16, got bfloat16"),
        ({"fused_length": None}, "'fused' needs fused_length and fraction_bits"),
        ({"fraction_bits": None}, "'fused' needs fused_length and fraction_bits"),
        ({"fused_length": 0}, "fused_length = 0; 1 to 1024"),
        ({"fused_length": 2048}, "fused_length = 2048; 1 to 1024"),
        ({"fraction_bits": 0}, "fraction_bits = 0; 1 to 48"),
        ({"fraction_bits": 49}, "fraction_bits = 49; 1 to 48"),
        ({"alignment_rounding": "stochastic"}, "only output_rounding may be stochastic"),
        ({"outer_rounding": "stochastic"}, "only output_rounding may be stochastic"),
        (
            {"accumulation": "exact", "output_rounding": "stochastic"},
            "'exact' has no stochastic rounding; 'sequential' and 'fused' have",
        ),
        ({"accumulation": "grouped"}, "group = None must divide fused_length = 4"),
        ({"accumulation": "grouped", "group": 3}, "group = 3 must divide fused_length = 4"),
        ({"accumulation": "two_step"}, "'two_step' needs second_fraction_bits"),
        ({"scale_block": 16}, "scale_formats and scale_block belong together"),
        ({"scale_formats": (get_format("ue4m3"),)}, "scale_formats and scale_block belong"),
        ({"accumulation": "native"}, "`tile` belongs to accumulation = 'native'"),
        ({"tile": (8, 8, 8)}, "`tile` belongs to accumulation = 'native'"),
        ({"accumulation": "native", "tile": (8, 0, 8)}, r"tile = \(8, 0, 8\); sizes are at least"),
        ({"accumulation": "chunked"}, "'chunked' needs fused_length and outer"),
        ({"interleave": 0}, "interleave = 0; at least 1"),
    ],
)
def test_bad_parameters(fields: dict[str, Any], message: str) -> None:
    good = {"name": "x", "output": get_format("float32"), "fused_length": 4, "fraction_bits": 13}
    assert Engine(**good).fraction_bits == 13
    with pytest.raises(ValueError, match=f"engine 'x': .*{message}"):
        Engine(**good | fields)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fraction_bits", "fracton_bits", "no key is named 'fracton_bits'; did you mean fraction"),
        ('"last"', '"late"', "accumulator = 'late'; use one of 'early', 'last', 'separate'"),
        ('"P"', '"X"', "evidence: level = 'X'; use one of 'V', 'O', 'P', '\\?'"),
        ('domain = "imagined"', "", "evidence: missing domain"),
        ("= 17", "= 99", "engine 'wide17': fraction_bits = 99; 1 to 48"),
        ('"float8_e5m2"', '"float8_e5m3"', "no .*named 'float8_e5m3'"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEN_LINES.replace(old, new))
    with pytest.raises(ValueError, match=message):
        get_engine(str(path))
