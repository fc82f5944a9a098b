"""Every cast of every format over all 2^32 float32 inputs: `make prove`.

Writes `formats.csv`, a row a format, rounding mode and overflow policy; `leading_bits.csv`, that
the leading bits and a sticky one decide a code, a row a mantissa width; `families.csv`, the members
of the P3109 family over one input of every such kind; and `manifest.json` with the date of the
first row. Rows are written as they are found, and a second run goes on where the first stopped, as
long as the code of casts and of the proof and the packages under them are the same; else it starts
anew. Exits with 1 where anything is wrong.
"""

import argparse
import csv
import dataclasses
import datetime
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowprec.numerics import get_format, list_formats
from lowprec.numerics.rounding import OVERFLOWS
from lowprec.study.leading_bits import leading_bits_decide, prove_reduced
from lowprec.study.proof import DETERMINISTIC, SAMPLE, prove

ROOT = Path(__file__).resolve().parent.parent
WAYS = tuple(itertools.product(DETERMINISTIC, OVERFLOWS))
WIDTHS = range(15)
PACKAGES = ("jax", "jaxlib", "numpy", "ml_dtypes")
SOURCES = (
    "lowprec/numerics",
    "lowprec/catalogue.py",
    "lowprec/study/leading_bits.py",
    "lowprec/study/proof.py",
    "lowprec/study/steps.py",
    "formats/elements",
    "experiments/prove.py",
)
"""What the rows rest on."""

Row = dict[str, Any]


def formats(name: str) -> list[Row]:
    """All modes and policies of one format over all float32 inputs."""
    return [dataclasses.asdict(proof) for proof in prove(get_format(name))]


def leading_bits(mantissa_bits: int) -> list[Row]:
    """Whether a code of so many mantissa bits depends on leading bits and a sticky one alone."""
    fmt = get_format(f"binary15p{mantissa_bits + 1}se")
    decide = leading_bits_decide(fmt, WAYS)
    return [
        {
            "mantissa_bits": mantissa_bits,
            "format": fmt.name,
            "rounding": rounding,
            "overflow": overflow,
            "inputs": 1 << 32,
            "holds": holds,
        }
        for (rounding, overflow), holds in zip(WAYS, decide, strict=True)
    ]


def family(name: str) -> list[Row]:
    """One member over the reduced inputs, its modes and policies in one row."""
    proofs = prove_reduced(get_format(name), WAYS)
    return [
        {
            "format": name,
            "bits": proofs[0].bits,
            "modes_and_policies": len(proofs),
            "inputs": proofs[0].inputs,
            "mismatches": sum(proof.mismatches for proof in proofs),
            "seconds": proofs[0].seconds,
        }
    ]


def members() -> Iterator[str]:
    """Every member of the P3109 family of 3 to 15 bits."""
    for bits in range(3, 16):
        for precision, sign, domain in itertools.product(range(1, bits + 1), "su", "ef"):
            try:
                yield get_format(f"binary{bits}p{precision}{sign}{domain}").name
            except ValueError:
                continue


def run(
    work: Callable[..., list[Row]], arguments: Iterable[Any], path: Path, workers: int
) -> list[Row]:
    """Applies `work` to every argument, and writes the rows in order each time that some come.

    Rows that the file has already are kept, those of other arguments at its end.
    """
    arguments, known = list(arguments), recorded(path)
    found = {x: known.pop(str(x)) for x in arguments if str(x) in known}
    missing = [x for x in arguments if x not in found]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = {pool.submit(work, argument): argument for argument in missing}
        for future in as_completed(futures):
            rows = found[futures[future]] = future.result()
            # An argument may be another name of what the file has.
            known.pop(about(rows[0]), None)
            print(f"{path.stem} {len(found)}/{len(arguments)}  {_summary(rows)}", flush=True)
            ordered = [found[x] for x in arguments if x in found]
            write(path, [row for rows in (*ordered, *known.values()) for row in rows])
    return [row for x in arguments for row in found[x]]


def about(row: Row) -> str:
    """What a row is about: a format, or a mantissa width."""
    return str(row["mantissa_bits"] if "mantissa_bits" in row else row["format"])


def recorded(path: Path) -> dict[str, list[Row]]:
    """The rows of a file by what they are about."""
    found: dict[str, list[Row]] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                numbers = {k: int(v) for k, v in row.items() if v.isdigit()}
                row_of = {**row, **numbers, "holds": row.get("holds") != "False"}
                found.setdefault(about(row), []).append({k: row_of[k] for k in row})
    return found


def source() -> str:
    """A digest of the code that rows rest on, and of the versions of packages."""
    digest = hashlib.sha256(json.dumps(versions(), sort_keys=True).encode())
    for place in SOURCES:
        path = ROOT / place
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}


def _summary(rows: list[Row]) -> str:
    first, wrong = rows[0], sum(map(is_wrong, rows))
    seconds = f", {first['seconds']:.1f} s" if "seconds" in first else ""
    verdict = f"{wrong} wrong" if wrong else "0 mismatches"
    return f"{first['format']}: {first['inputs']} inputs, {len(WAYS)} ways: {verdict}{seconds}"


def is_wrong(row: Row) -> bool:
    """Whether a row says that something differs."""
    return bool(row.get("mismatches") or row.get("disagreements") or not row.get("holds", True))


def write(path: Path, rows: list[Row]) -> None:
    # A run that is stopped here leaves the whole file that was: half a format is no proof of it.
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{x:.2f}" if isinstance(x, float) else x for k, x in row.items()})
    partial.replace(path)


def manifest() -> dict[str, Any]:
    return {
        "source": source(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "roundings": DETERMINISTIC,
        "overflows": OVERFLOWS,
    }


def begin(out: Path) -> None:
    """Writes the manifest, and removes rows that rest on other code; with the same both stay."""
    path = out / "manifest.json"
    if path.exists() and json.loads(path.read_text()).get("source") == source():
        return
    for name in ("formats", "leading_bits", "families"):
        (out / f"{name}.csv").unlink(missing_ok=True)
    path.write_text(json.dumps(manifest(), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Proves every cast.")
    parser.add_argument("--out", type=Path, default=Path("reports/proof"))
    parser.add_argument("--formats", nargs="*", help="formats to prove, instead of all there are")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    begin(options.out)
    names = options.formats or [*list_formats(), *SAMPLE]
    # The longest first: tables are looked up value by value, wide formats have many steps.
    names.sort(key=lambda name: (get_format(name).table is None, -get_format(name).bits))
    rows = run(formats, names, options.out / "formats.csv", options.workers)
    if not options.formats:
        path = options.out / "leading_bits.csv"
        rows += run(leading_bits, WIDTHS, path, options.workers)
        rows += run(family, members(), options.out / "families.csv", options.workers)
    wrong = [row for row in rows if is_wrong(row)]
    for row in wrong:
        print("WRONG", row)
    print(f"{len(rows)} rows, {len(wrong)} wrong, in {options.out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
