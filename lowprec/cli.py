"""The `lowprec` command: the catalogue, comparisons, evidence and test vectors."""

import importlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from lowprec import catalogue
from lowprec.cli_advise import AdviseCommand, run_advise
from lowprec.cli_checkpoint import (
    CaptureCommand,
    CheckpointCommand,
    EvaluateCommand,
    run_checkpoint,
)
from lowprec.cli_diff import DiffCommand, run_diff
from lowprec.cli_kv import KvCommand, run_kv
from lowprec.cli_ledger import LedgerCommand, run_ledger
from lowprec.cli_report import ReportCommand, run_report
from lowprec.cli_study import StudyCommand, run_study_command
from lowprec.cli_throughput import ThroughputCommand, run_throughput
from lowprec.engines import get_engine
from lowprec.engines.c_reference import c_reference, why_no_reference
from lowprec.engines.vectors import write_vectors
from lowprec.gemm.recipe import get_recipe
from lowprec.report import Results, write_report
from lowprec.report.describe import FAMILIES, KINDS, describe, find_entries
from lowprec.study import PRESETS, Collected, compare_captured, compare_files, manifest
from lowprec.study.compare import RECIPES, check_comparable, with_baselines
from lowprec.study.identify import identify_files
from lowprec.study.probe import probe
from lowprec.study.verify import verify

_FAILURES = (ValueError, TypeError, OSError, ImportError)


@dataclass(frozen=True)
class ListEntries:
    """List the entries of one kind, or count those of all.

    Example: lowprec list recipes
    """

    kind: tyro.conf.Positional[Literal["formats", "blocks", "engines", "recipes", "kv"] | None] = (
        None
    )
    """Which kind of entry; without one, how many there are of each."""


@dataclass(frozen=True)
class Show:
    """Show an entry: parameters, derived figures, values and source.

    Example: lowprec show nvfp4, lowprec show block:nvfp4, lowprec show my_format.toml
    """

    name: tyro.conf.Positional[tuple[str, ...]]
    """[KIND] NAME or KIND:NAME: a name or a path to a TOML file; without a kind, all of a name."""


@dataclass(frozen=True)
class Compare:
    """Compare recipes: on the small model that the repository carries, or on your own tensors.

    Example: lowprec compare --operands dump.safetensors --recipes mxfp8 nvfp4 mine.toml
    """

    operands: tuple[Path, ...] = ()
    """Files (.npy .npz .safetensors) with keys LAYER.x, LAYER.w, LAYER.dy, or lone 2-D tensors."""

    recipes: tuple[str, ...] = ()
    """Names or paths to TOML files; by default a few of the catalogue."""

    a: str | None = None
    """The key of the left operand (M, K), with --b."""

    b: str | None = None
    """The key of the right operand (K, N), with --a."""

    out: Path = Path("lowprec-report")
    """The directory that the report is written to."""

    preset: Literal["quick", "full"] = "quick"
    """How much of the model's held-out text is read."""


@dataclass(frozen=True)
class Verify:
    """Run the evidence again on this machine: one line a check, exit status 1 on a failure.

    Example: lowprec verify --silicon MATLAB-tensor-core/model_validation
    """

    silicon: Path | None = None
    """A folder of dot products captured on GPUs: MATLAB-tensor-core's text files, or .npz files."""

    quick: bool = False
    """A few engines rather than all."""


@dataclass(frozen=True)
class Vectors:
    """Write an engine's test vectors in hexadecimal, and a C99 reference that reads them.

    Example: lowprec vectors --engine hopper.wgmma.fp8.fp32 --out vectors
    """

    engine: str
    """An engine's name, or a path to a TOML file."""

    count: int = 1000
    """How many dot products for each pair of operand formats."""

    k: int | None = None
    """The length of a dot product; by default one instruction."""

    seed: int = 0
    """Another seed draws others."""

    out: Path = Path("lowprec-vectors")
    """The directory that the files are written to."""


@dataclass(frozen=True)
class Probe:
    """Infer how a product sums, from its results alone: order, widths, roundings, closest entries.

    Example: lowprec probe --callable numpy:matmul, lowprec probe --engine mine.toml
    """

    engine: str | None = None
    """An engine's name, or a path to a TOML file."""

    callable: str | None = None
    """MODULE:FUNCTION, a product f(a, b) of NumPy arrays, or f(a, b, c)."""

    formats: tuple[str, ...] = ()
    """The formats of a and b, or one for both; float32, or an engine's first, by default."""

    k: int = 64
    """The length of the dot products."""

    size: int = 16
    """Rows and columns of the products, on which the order may depend."""


@dataclass(frozen=True)
class Identify:
    """Find the arithmetic that gives a dumped product's bits, or the closest.

    Example: lowprec identify --a a.npy --b b.npy --out out.npy
    """

    a: Path
    """The left operand (M, K), as the engine read it (.npy .npz .safetensors)."""

    b: Path
    """The right operand (K, N)."""

    out: Path
    """The result (M, N) in float32, bfloat16 or float16."""

    c: Path | None = None
    """What the sum started from (M, N)."""

    scales: tuple[Path, ...] = ()
    """Scales of a, (rows, tiles along K), and of b, (tiles, columns), in one file or two."""


Command = Annotated[
    Annotated[ListEntries, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Vectors, tyro.conf.subcommand("vectors")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Identify, tyro.conf.subcommand("identify")]
    | Annotated[LedgerCommand, tyro.conf.subcommand("ledger")]
    | Annotated[AdviseCommand, tyro.conf.subcommand("advise")]
    | Annotated[ThroughputCommand, tyro.conf.subcommand("throughput")]
    | Annotated[KvCommand, tyro.conf.subcommand("kv")]
    | Annotated[DiffCommand, tyro.conf.subcommand("diff")]
    | CheckpointCommand
    | Annotated[ReportCommand, tyro.conf.subcommand("report")]
    | Annotated[StudyCommand, tyro.conf.subcommand("study")],
    tyro.conf.OmitArgPrefixes,
]


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit status. A failure is one line without `--debug`."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    command = tyro.cli(
        Command,
        prog="lowprec",
        args=arguments,
        description="Bit-exact FP8, FP6 and FP4 numerics: what a recipe loses, and why. "
        "--debug anywhere shows the traceback of a failure.",
    )
    try:
        return _dispatch(command, arguments)
    except KeyboardInterrupt:
        print("lowprec: interrupted", file=sys.stderr)
        return 130
    except _FAILURES as error:
        if debug:
            raise
        print(f"lowprec: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def _dispatch(command: Any, arguments: Sequence[str]) -> int:
    match command:
        case ListEntries(kind=kind):
            print("\n".join(_listed(kind)))
        case Show(name=name):
            _show(name)
        case Compare():
            _compare(command, "lowprec " + shlex.join(arguments))
        case Verify(silicon=silicon, quick=quick):
            return _verify(silicon, quick)
        case Vectors():
            _vectors(command)
        case Probe():
            _probe(command)
        case Identify(a=a, b=b, out=out, c=c, scales=scales):
            print(identify_files(a, b, out, c=c, scales=scales))
        case LedgerCommand():
            run_ledger(command)
        case AdviseCommand():
            return run_advise(command, _progress)
        case CaptureCommand() | EvaluateCommand():
            run_checkpoint(command, _progress)
        case ThroughputCommand():
            run_throughput(command)
        case KvCommand():
            run_kv(command, _progress, "lowprec " + shlex.join(arguments))
        case DiffCommand():
            run_diff(command, _progress, "lowprec " + shlex.join(arguments))
        case ReportCommand():
            run_report(command, "lowprec " + shlex.join(arguments))
        case StudyCommand():
            return run_study_command(command, "lowprec " + shlex.join(arguments))
    return 0


def _listed(kind: str | None) -> list[str]:
    """The names of a kind, and how those of its families are spelt; or the kinds, counted."""
    if kind is None:
        plural = {name: name if name == "kv" else f"{name}s" for name in KINDS}
        return [f"{plural[name]}  {len(catalogue.names(KINDS[name][0]))}" for name in KINDS]
    name = kind.removesuffix("s")
    spelt = [f"and by name: {', '.join(FAMILIES[name])}"] if name in FAMILIES else []
    return [*catalogue.names(KINDS[name][0]), *spelt]


def _show(words: tuple[str, ...]) -> None:
    kind = words[0].removesuffix("s") if len(words) == 2 else None
    if len(words) not in (1, 2) or (kind is not None and kind not in KINDS):
        raise ValueError(
            f"`show` takes [KIND] NAME, KIND one of {', '.join(KINDS)}; got {' '.join(words)!r}"
        )
    found = find_entries(words[-1], kind)
    print("\n\n".join(describe(kind, value) for kind, value in found))


def _verify(silicon: Path | None, quick: bool) -> int:
    """A line as each check ends; 1 where one failed."""
    counted = dict.fromkeys(("pass", "FAIL", "skipped"), 0)
    for report in verify(silicon, quick=quick):
        print(report, flush=True)
        counted[report.status] += 1
    print(f"{counted['pass']} passed, {counted['FAIL']} failed, {counted['skipped']} skipped")
    return 1 if counted["FAIL"] else 0


def _probe(command: Probe) -> None:
    if (command.engine is None) == (command.callable is None):
        raise ValueError("`probe` takes --engine NAME or --callable MODULE:FUNCTION, one of them")
    if command.callable is None:
        multiply: Any = command.engine
    else:
        module, _, function = command.callable.partition(":")
        # A module of the user's own lies where the command is run.
        sys.path.insert(0, str(Path.cwd()))
        multiply = getattr(importlib.import_module(module), function, None)
        if multiply is None:
            raise ValueError(f"`--callable` {command.callable}: {module} has no {function!r}")
    formats = command.formats or None
    if formats is not None and len(formats) == 1:
        formats = formats * 2
    print(probe(multiply, formats=formats, k=command.k, size=command.size))


def _vectors(command: Vectors) -> None:
    engine = get_engine(command.engine)
    _check_writable(command.out)
    options = {"count": command.count, "seed": command.seed, "k": command.k}
    for path in write_vectors(engine, command.out, **options):
        print(path)
    if reason := why_no_reference(engine):
        print(f"no C reference is generated: {reason}")
        return
    source = command.out / f"{engine.name}.c"
    source.write_text(c_reference(engine))
    print(source)


def _compare(command: Compare, line: str) -> None:
    if (command.a is None) != (command.b is None):
        raise ValueError("`--a` and `--b` go together: the keys of the left and the right operand")
    if command.a is not None and len(command.operands) != 1:
        raise ValueError(f"`--a` and `--b` need one --operands file, got {len(command.operands)}")
    recipes = [get_recipe(name) for name in command.recipes or RECIPES]
    _check_distinct("recipe", [recipe.name for recipe in with_baselines(recipes)])
    _check_distinct("operands file", [path.name for path in command.operands])
    for recipe in recipes:
        check_comparable(recipe)
    _check_writable(command.out)
    preset, collected, console = PRESETS[command.preset], Collected(), Console(stderr=True)
    files = list(command.operands)
    finished = False
    try:
        with _progress(console) as bar:
            task = bar.add_task("loading", total=None)

            def tell(step: str, done: int, total: int) -> None:
                bar.update(task, description=step, completed=done, total=total)
                if done and not console.is_terminal:
                    console.print(f"{done}/{total} {step}", soft_wrap=True)

            if files:
                compare_files(files, recipes, collected, tell, a=command.a, b=command.b)
            else:
                files = compare_captured(recipes, preset, collected, tell)
        finished = True
    finally:
        # What has finished is written whatever ended the run.
        if finished or collected.products or collected.tensors:
            settings = {"preset": asdict(preset), "complete": finished, "bootstrap": "documents"}
            record = manifest(recipes, files, settings)
            page = write_report(_results(collected, record, line), command.out)
            console.print(f"{'report' if finished else 'partial report'}: {page}", soft_wrap=True)
    _summary(collected, console)


def _check_distinct(what: str, names: Sequence[str]) -> None:
    """Rows are told apart by these names."""
    for name in names:
        if list(names).count(name) > 1:
            raise ValueError(f"two entries share the {what} name {name!r}; rename one of them")


def _check_writable(out: Path) -> None:
    """Fails before the work where its results could not be written after it."""
    if not out.parent.is_dir():
        raise ValueError(f"cannot write to {out}: {out.parent} is not a directory")
    out.mkdir(exist_ok=True)
    probe = out / ".lowprec"
    probe.touch()
    probe.unlink()


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _results(collected: Collected, record: dict[str, Any], line: str) -> Results:
    def frame(rows: Sequence[Any]) -> pl.DataFrame:
        tables = [row if isinstance(row, dict) else asdict(row) for row in rows]
        return pl.DataFrame(tables, infer_schema_length=None)

    return Results(
        products=frame(collected.products),
        tensors=frame(collected.tensors),
        cards=frame(collected.cards),
        model=frame(collected.model),
        histogram=frame(collected.histogram),
        timings=frame(collected.timings),
        manifest=record,
        command=line,
    )


def _summary(collected: Collected, console: Console) -> None:
    """The medians in the terminal, for those who read no further."""
    table = Table(title="median SQNR, dB")
    roles = list(dict.fromkeys(row.role for row in collected.products))
    table.add_column("recipe")
    for role in roles:
        table.add_column(role, justify="right")
    frame = pl.DataFrame([asdict(row) for row in collected.products])
    if frame.is_empty():
        return
    medians = frame.group_by("recipe", "role").agg(pl.col("sqnr_db").median())
    found = {(row["recipe"], row["role"]): row["sqnr_db"] for row in medians.iter_rows(named=True)}
    for recipe in dict.fromkeys(row.recipe for row in collected.products):
        cells = [f"{found[recipe, role]:.1f}" if (recipe, role) in found else "" for role in roles]
        table.add_row(recipe, *cells)
    console.print(table)
