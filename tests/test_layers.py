"""The house: rooms import only rooms above them, and importing lowprec pulls in nothing heavy."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.layers import cycle, late_imports, modules, violations

PACKAGE = Path(__file__).parent.parent / "lowprec"
LONGEST = 500
HEAVY = ("matplotlib", "polars", "pandas", "torch", "jinja2", "rich", "tyro", "safetensors")


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A package of the same name with two rooms, the lower importing the upper."""
    package = tmp_path / "lowprec"
    for name in ("numerics", "scaling"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text("")
    (package / "__init__.py").write_text("from lowprec.scaling import block\n")
    (package / "numerics" / "codec.py").write_text("import math\nimport jax.numpy as jnp\n")
    (package / "scaling" / "block.py").write_text("from lowprec.numerics import codec\n")
    return package


def test_rooms_import_only_rooms_above_them() -> None:
    assert len(modules(PACKAGE)) > 20
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    "source",
    [
        "from lowprec.scaling.block import Block",
        "from lowprec.scaling import block",
        "import lowprec.scaling.block",
        "from lowprec import scaling",
        "from ..scaling import block",
        "from .. import scaling",
        "from ..scaling.block import Block as B",
        "def late():\n    from lowprec.scaling import block\n",
        "class A:\n    def late(self):\n        import lowprec.scaling as s\n",
        "import typing\nif typing.TYPE_CHECKING:\n    from lowprec.scaling import block\n",
        "try:\n    from ..scaling import block\nexcept ImportError:\n    pass\n",
        "import lowprec",
    ],
)
def test_the_check_fails_on_an_import_from_below(synthetic: Path, source: str) -> None:
    assert violations(synthetic) == []
    (synthetic / "numerics" / "codec.py").write_text(source)
    found = violations(synthetic)
    assert len(found) == 1 and "codec.py" in found[0] and "numerics must not import" in found[0]


def test_the_check_fails_on_a_module_in_no_room(synthetic: Path) -> None:
    (synthetic / "utils.py").write_text("")
    assert "utils is no room" in violations(synthetic)[0]


def test_a_package_sees_its_own_relative_imports(synthetic: Path) -> None:
    (synthetic / "scaling" / "__init__.py").write_text(
        "from .block import x\nfrom . import block\n"
    )
    assert violations(synthetic) == []
    (synthetic / "numerics" / "__init__.py").write_text("from ..scaling import block\n")
    assert len(violations(synthetic)) == 1


def test_no_import_cycle() -> None:
    assert cycle(PACKAGE) == []


def test_the_check_finds_a_cycle(synthetic: Path) -> None:
    assert cycle(synthetic) == []
    (synthetic / "scaling" / "rules.py").write_text("from .tiles import a\n")
    (synthetic / "scaling" / "tiles.py").write_text("def f():\n    from . import rules\n")
    ring = cycle(synthetic)
    assert ring[0] == ring[-1] and {"lowprec.scaling.rules", "lowprec.scaling.tiles"} == set(ring)


def test_imports_stand_at_the_top() -> None:
    late = {
        str(path): lines
        for name, path in modules(PACKAGE).items()
        if name != "lowprec.__main__" and (lines := late_imports(path))
    }
    assert late == {}


def test_the_check_finds_a_late_import(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text("import os\n\n\ndef f():\n    import sys\n    return sys, os\n")
    assert late_imports(path) == [5]


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in modules(PACKAGE).values()}
    assert {str(path): n for path, n in lengths.items() if n > LONGEST} == {}


def test_importing_lowprec_pulls_in_nothing_heavy() -> None:
    command = f"import sys, lowprec; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
