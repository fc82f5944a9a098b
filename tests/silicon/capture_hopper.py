"""Captures what a Hopper GPU's matrix instructions return, bit for bit, as evidence for tests.

**Not yet run on a GPU.** The CUDA source compiles for sm_90a; packing, file and comparison are
tested with the exact oracle in the GPU's place. No result of it exists.

On a machine with an H100, H200 or GH200, its driver, and nvcc 12.8 or later:

    python -m tests.silicon.capture_hopper

It compiles capture_hopper.cu, checks with sums of small integers that every operand lies where the
instruction reads it ("layout wrong" if not), runs `wgmma` and `mma.sync` in FP8, float16, bfloat16
and tf32 on the groups of hopper_groups.py, writes tests/silicon/hopper_<gpu>.npz, and prints for
each group in how many results lowprec's engine differs. test_hopper_capture.py then compares the
file wherever the tests run.
"""

import argparse
import datetime
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.silicon.hopper_capture import capture, check_layout, compare, plan, save
from tests.silicon.hopper_jobs import SOURCE, Program, build

FOLDER = Path(__file__).parent


def main() -> int:
    """Builds, runs, writes and compares; 1 where anything could not be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--nvcc", default="nvcc", help="the CUDA compiler")
    parser.add_argument("--output", type=Path, help="the file to write (default: named by GPU)")
    parser.add_argument("--compile-only", action="store_true", help="build the program and stop")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            device = Program(build(Path(folder), given.nvcc))
            if given.compile_only:
                print(f"{SOURCE.name} compiles for sm_90a")
                return 0
            return _run(device, given)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


class _Plain(argparse.RawDescriptionHelpFormatter):
    """The docstring as it is written."""


def _run(device: Program, given: argparse.Namespace) -> int:
    exact = check_layout(device)
    print(f"{device.description['gpu']}: {exact} sums of small integers are exact")
    captured = capture(device, plan())
    gpu = re.sub("[^a-z0-9]+", "_", str(device.description["gpu"]).lower())
    path = given.output or FOLDER / f"hopper_{gpu}.npz"
    save(path, captured, {**device.description, **_provenance(given.nvcc), "layout_sums": exact})
    print(f"{path}: {sum(one.d.size for one in captured)} results, {path.stat().st_size} bytes")
    wrong = 0
    for found in compare(captured):
        print(found)
        wrong += found.wrong
    print(f"{wrong} results differ from lowprec's engines")
    return 0


def _provenance(nvcc: str) -> dict[str, str]:
    sources = sorted([SOURCE, *FOLDER.glob("*hopper*.py")])
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "driver": _output(query),
        "nvcc": _output([nvcc, "--version"]).splitlines()[-1],
        **{f"sha256 of {x.name}": hashlib.sha256(x.read_bytes()).hexdigest() for x in sources},
    }


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"unknown: {error}"
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
