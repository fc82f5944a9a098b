"""Which small changes of the numeric core the tests notice: `make mutants`.

cosmic-ray makes the mutants: a seeded sample over every file of `lowprec/numerics` and
`lowprec/scaling`, oracles included, in proportion to its lines; places are drawn first and then
one of a place's mutations, annotations excepted. Each mutant is tried in a process of its own, with
the modules that take long to import already there, against the tests of its file, quickest first.
Results are appended to `reports/proof/mutants.csv`: a second run goes on where the first stopped,
and `--again` tries those that lived once more, with the tests that there are now. Why one lives on
stands in `survivors.csv` beside it, written by hand in its last column and kept by later runs.
"""

import argparse
import ast
import collections
import csv
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
MUTATED = ("lowprec/numerics", "lowprec/scaling")
Plan = tuple[list[list[str]], float]
"""Groups of tests, as arguments of pytest, and the seconds that they take unmutated."""
COPIED = ("lowprec", "tests", "formats", "experiments", "pyproject.toml")
PRELOADED = ["jax", "jax.numpy", "ml_dtypes", "pytest"]
PASSED, FAILED = 0, 77
SMALL = "tests/properties/test_small_sample.py"

# Test files of a source file beside those that bear its name; the small sample always comes first.
NUMERICS = ("test_rounding_modes", "test_oracle", "test_format", "test_codec_errors")
TESTS = {
    "lowprec/numerics/arguments.py": ("test_codec_errors", "test_float64"),
    "lowprec/numerics/codec.py": ("test_rounding_modes", "test_codec_errors", "test_float64"),
    "lowprec/numerics/decoding.py": ("test_codec_ml_dtypes", "test_codec_oracle"),
    "lowprec/numerics/families.py": ("test_format",),
    "lowprec/numerics/magnitudes.py": ("test_rounding_modes", "test_codec_properties"),
    "lowprec/numerics/oracle.py": (*NUMERICS, "test_codec_properties -k test_10"),
    "lowprec/numerics/rounding.py": ("test_rounding_modes", "test_codec_properties -k test_10"),
    "lowprec/numerics/stochastic.py": ("test_rounding_modes", "test_codec_properties -k test_10"),
    "lowprec/numerics/table.py": (
        "test_rounding_modes",
        "test_codec_properties",
        "test_float64",
    ),
    "lowprec/scaling/block.py": ("test_quantize_properties", "test_cast", "test_transforms"),
    "lowprec/scaling/codings.py": ("test_affine", "test_quantize_sources"),
    "lowprec/scaling/fixed_point.py": ("test_logarithmic", "test_rules_logarithmic"),
    "lowprec/scaling/levels.py": ("test_quantize_special_blocks", "test_quantize_sources"),
    "lowprec/scaling/oracle.py": (
        "test_candidates",
        "test_quantize_special_blocks",
        "test_rules_logarithmic",
    ),
    "lowprec/scaling/qtensor.py": (
        "test_transforms",
        "test_quantize_properties",
        "test_quantize_properties -m slow -k factors",
        "test_cast",
        "test_affine",
    ),
    "lowprec/scaling/quantize.py": (
        "test_quantize_properties",
        "test_quantize_special_blocks",
        "test_affine",
    ),
    "lowprec/scaling/tiles.py": ("test_quantize_properties",),
}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: the operator's occurrence in a file, and the line that it changes."""

    file: str
    line: int
    operator: str
    occurrence: int
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, ...]:
        return self.file, self.operator, str(self.occurrence), self.source


def files() -> list[str]:
    """Every Python file that is mutated, but those that only pass names on."""
    found = [path for folder in MUTATED for path in sorted((ROOT / folder).glob("*.py"))]
    return [str(x.relative_to(ROOT)) for x in found if x.name != "__init__.py"]


def sample(count: int, seed: int) -> list[Mutant]:
    """Mutants in proportion to the lines of their files, in an order that mixes the files."""
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in files()}
    rng, chosen = random.Random(seed), []
    for file, length in lines.items():
        wanted = max(1, round(count * length / sum(lines.values())))
        chosen += drawn(file, wanted, random.Random(f"{seed} {file}"))
    rng.shuffle(chosen)
    return chosen


def drawn(file: str, count: int, rng: random.Random) -> list[Mutant]:
    """Places of a file at random and for each one of the mutations that are possible there."""
    code = (ROOT / file).read_text()
    places: dict[tuple[int, int], list[tuple[str, int]]] = collections.defaultdict(list)
    inside = annotations(code)
    for operator, occurrence, place in mutations(code):
        if place not in inside:
            places[place].append((operator, occurrence))
    mutants = []
    for place in rng.sample(sorted(places), len(places)):
        operator, occurrence = rng.choice(sorted(places[place]))
        mutated = mutate_code(code, get_operator(operator)(), occurrence)
        if mutated is None or mutated == code:
            continue
        pair = changed_line(code, mutated)
        mutants.append(Mutant(file, place[0], operator, occurrence, *pair, digest_of(code)))
        if len(mutants) == count:
            break
    return mutants


def digest_of(code: str) -> str:
    """Of what the code does: comments and layout left out."""
    return hashlib.sha256(ast.dump(ast.parse(code)).encode()).hexdigest()[:12]


def mutations(code: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Every operator that takes no argument, with each occurrence and where it begins."""
    tree = get_ast(code)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        starts = (
            start for node in ast_nodes(tree) for start, _ in operator.mutation_positions(node)
        )
        for occurrence, start in enumerate(starts):
            yield name, occurrence, start


def annotations(code: str) -> set[tuple[int, int]]:
    """The places inside annotations and type aliases, where nothing is computed."""
    places = set()
    for node in ast.walk(ast.parse(code)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            names = {x.id for x in ast.walk(node.value) if isinstance(x, ast.Name)}
            parts += [node.value] if names & {"Literal", "Callable", "NDArray"} else []
        for part in filter(None, parts):
            for line in range(part.lineno, (part.end_lineno or part.lineno) + 1):
                first = part.col_offset if line == part.lineno else 0
                last = part.end_col_offset if line == part.end_lineno else 200
                places |= {(line, column) for column in range(first, last or 200)}
    return places


def changed_line(code: str, mutated: str) -> tuple[str, str]:
    pairs = zip(code.splitlines(), mutated.splitlines(), strict=False)
    return next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", ""))


def groups_of(file: str, tree: Path) -> list[list[str]]:
    """The tests that judge a file's mutants as arguments of pytest, the most telling first.

    For `numerics` the small sample, then the files that bear its name; for `scaling` the other way
    round, since its sample is compiled block by block; and at last what TESTS names.
    """
    room, stem = Path(file).parent.name, Path(file).stem.removesuffix("_oracle")
    named = [[str(x.relative_to(tree))] for x in (tree / "tests" / room).glob(f"test_*{stem}*.py")]
    more = TESTS.get(file, NUMERICS if room == "numerics" else ("test_quantize_sources",))
    chosen = [name.split(" ", 1) for name in more]
    others = [[f"tests/{room}/{name}.py", *"".join(rest).split()] for name, *rest in chosen]
    scaling = "test_every_way_to_scale"
    sample = [[SMALL, "-k", f"not {scaling}" if room == "numerics" else scaling]]
    first = sample + sorted(named) if room == "numerics" else sorted(named) + sample
    groups = [group for group in first + others if (tree / group[0]).exists()]
    return [group for index, group in enumerate(groups) if group not in groups[:index]]


def judge(tree: str, groups: list[list[str]], report: str) -> None:
    """Runs groups of tests in the tree, in this process; ends it at the first failure.

    Only a test that fails, or that cannot be collected, speaks of the code: where pytest itself
    stops for another reason, the process ends with neither code.
    """
    os.chdir(tree)
    sys.path.insert(0, tree)
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=line"]
    for group in groups:
        # A file that is slow as a whole is taken as a whole; others without their slow proofs.
        whole = "\npytestmark = pytest.mark.slow" in Path(group[0]).read_text()
        marked = "slow" if whole else "not slow"
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            code = pytest.main([*options, "-m", marked, *group])
        if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            continue
        failed = [x for x in output.getvalue().splitlines() if x.startswith(("FAILED", "ERROR"))]
        Path(report).write_text(failed[0] if failed else output.getvalue()[-1000:])
        os._exit(FAILED if failed else 1)
    os._exit(PASSED)


class Worker:
    """A copy of the tree, where one mutant at a time is tried."""

    def __init__(self, place: Path) -> None:
        self.tree = place
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place / name)
        self.context = multiprocessing.get_context("forkserver")

    def mutated(self, file: str, code: str, plan: Plan) -> tuple[str, str, float]:
        """Outcome, the test that failed, seconds: of a file's tests on mutated code."""
        target, (groups, usual) = self.tree / file, plan
        original = target.read_text()
        try:
            target.write_text(code)
            return self.run(groups, max(60.0, 4 * usual))
        finally:
            target.write_text(original)

    def run(self, groups: list[list[str]], limit: float) -> tuple[str, str, float]:
        """The same of groups of tests on the tree as it is."""
        report = self.tree / "failed.txt"
        report.unlink(missing_ok=True)
        start = time.perf_counter()
        process = self.context.Process(target=judge, args=(str(self.tree), groups, str(report)))
        process.start()
        process.join(limit)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        seconds = time.perf_counter() - start
        failed = report.read_text() if report.exists() else ""
        if late:
            # Four times as long as without the mutation: it hangs.
            return "killed", "out of time", seconds
        if process.exitcode not in (PASSED, FAILED):
            return "error", failed or f"exit code {process.exitcode}", seconds
        return "killed" if process.exitcode == FAILED else "survived", failed, seconds


FIELDS = ("file", "line", "operator", "occurrence", "before", "after", "source")
COLUMNS: list[str] = [*FIELDS, "outcome", "by", "seconds"]


def recorded(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def key_of(row: dict[str, str]) -> tuple[str, ...]:
    return row["file"], row["operator"], row["occurrence"], row["source"]


def record(path: Path, row: dict[str, str]) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def plan(file: str, usual: dict[str, float], most: float) -> Plan:
    """The first of a file's groups of tests, and of the others as many as take so many seconds."""
    chosen: list[list[str]] = []
    total = 0.0
    for group in groups_of(file, ROOT):
        seconds = usual[" ".join(group)]
        if not chosen or total + seconds <= most:
            chosen.append(group)
            total += seconds
    print(f"{file}: {', '.join(group[0] for group in chosen)}, {total:.0f} s")
    return chosen, total


def run(
    mutants: list[Mutant], plans: dict[str, Plan], out: Path, options: argparse.Namespace
) -> None:
    """Tries all mutants that have no result yet, on some copies of the tree at once."""
    done = {key_of(x) for x in recorded(out) if x["outcome"] != "error"}
    queue: SimpleQueue[Mutant] = SimpleQueue()
    for mutant in mutants:
        if mutant.key not in done:
            queue.put(mutant)
    deadline, lock = time.monotonic() + 60 * options.minutes, threading.Lock()

    def work(place: Path) -> None:
        worker = Worker(place)
        while time.monotonic() < deadline:
            try:
                mutant = queue.get_nowait()
            except Empty:
                return
            code = (worker.tree / mutant.file).read_text()
            mutated = mutate_code(code, get_operator(mutant.operator)(), mutant.occurrence)
            assert mutated is not None
            outcome, by, seconds = worker.mutated(mutant.file, mutated, plans[mutant.file])
            row = {name: str(getattr(mutant, name)) for name in FIELDS}
            row |= {"outcome": outcome, "by": by, "seconds": f"{seconds:.1f}"}
            with lock:
                record(out, row)
                print(f"{outcome:8} {seconds:5.1f} s  {mutant.file}:{mutant.line}  {mutant.after}")
                sys.stdout.flush()

    in_copies(work, options.workers)


def summarise(mutants: list[Mutant], out: Path) -> int:
    """Prints the score and the survivors of the sample; 1 where fewer than 90 % were killed."""
    keys = {mutant.key for mutant in mutants}
    rows = list({key_of(x): x for x in recorded(out) if key_of(x) in keys}.values())
    survivors = explained([x for x in rows if x["outcome"] != "killed"], out)
    print(f"\n{len(rows)} of {len(mutants)} mutants tried, {len(rows) - len(survivors)} killed")
    for x in survivors:
        print(f"  {x['file']}:{x['line']} {x['operator']} {x['by']}\n    - {x['before']}")
        print(f"    + {x['after']}\n    {x['why'] or 'unexplained'}")
    if not rows:
        return 1
    score = 1 - len(survivors) / len(rows)
    print(f"score {100 * score:.1f} %")
    return 0 if score >= 0.9 and len(rows) == len(mutants) else 1


def explained(rows: list[dict[str, str]], out: Path) -> list[dict[str, str]]:
    """Survivors with why they live, as far as that has been written down; writes the list anew."""
    path, names = out.with_name("survivors.csv"), ("file", "line", "before", "after")
    known = {(x["file"], x["before"], x["after"]): x["why"] for x in recorded(path)}
    rows = sorted(rows, key=lambda x: (x["file"], int(x["line"])))
    rows = [x | {"why": known.get((x["file"], x["before"], x["after"]), "")} for x in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, (*names, "why"), extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


def check(path: Path, chosen: list[str], workers: int) -> dict[str, float]:
    """Runs every test once on the unchanged tree: one that fails there would kill any mutant.

    Returns seconds by group of tests; they are kept beside the results for a second run.
    """
    digest = digest_of_tests()
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    usual: dict[str, float] = before.get("seconds", {}) if before.get("digest") == digest else {}
    groups = {" ".join(group) for file in chosen for group in groups_of(file, ROOT)}
    queue: SimpleQueue[str] = SimpleQueue()
    for group in sorted(groups - set(usual)):
        queue.put(group)
    failed: list[str] = []

    def work(place: Path) -> None:
        worker = Worker(place)
        while not queue.empty():
            group = queue.get()
            outcome, by, seconds = worker.run([group.split(" ", 2)], 600)
            print(f"unchanged  {seconds:5.1f} s  {group} {by}", flush=True)
            if outcome != "survived" or by:
                failed.append(group)
            else:
                usual[group] = round(seconds, 1)

    in_copies(work, workers)
    text = json.dumps({"digest": digest, "seconds": usual}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    if failed:
        raise SystemExit(f"these tests fail without any mutation: {', '.join(failed)}")
    return usual


def digest_of_tests() -> str:
    """Of the tests, and of the code that they are to pass on."""
    digest = hashlib.sha256()
    for place in (*MUTATED, "tests", "formats"):
        for file in sorted((ROOT / place).rglob("*")):
            if file.suffix in (".py", ".toml"):
                digest.update(file.read_bytes())
    return digest.hexdigest()


def forget_survivors(path: Path) -> None:
    """Leaves the killed mutants alone in a file of results."""
    rows = [row for row in recorded(path) if row["outcome"] == "killed"]
    path.unlink(missing_ok=True)
    for row in rows:
        record(path, row)


def in_copies(work: Callable[[Path], None], workers: int) -> None:
    """Runs `work` in threads, each with an empty folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(index) for index in range(workers)]
        threads = [threading.Thread(target=work, args=(place,)) for place in places]
        for place, thread in zip(places, threads, strict=True):
            place.mkdir()
            thread.start()
        for thread in threads:
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutates the numeric core.")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=20260101)
    parser.add_argument("--minutes", type=float, default=48)
    parser.add_argument("--seconds", type=float, default=75, help="of tests for a mutant")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "reports/proof/mutants.csv")
    parser.add_argument("--again", action="store_true", help="try those that lived once more")
    parser.add_argument("--only", default="", help="files whose path contains this")
    options = parser.parse_args()
    multiprocessing.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as cache:
        # What a mutant leaves as it was is compiled once.
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return study(options)


def study(options: argparse.Namespace) -> int:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.again:
        forget_survivors(options.out)
    chosen = [file for file in files() if options.only in file]
    usual = check(options.out.with_suffix(".json"), chosen, options.workers)
    plans = {file: plan(file, usual, options.seconds) for file in chosen}
    mutants = [x for x in sample(options.count, options.seed) if x.file in plans]
    run(mutants, plans, options.out, options)
    return summarise(mutants, options.out)


if __name__ == "__main__":
    sys.exit(main())
