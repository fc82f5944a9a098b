"""What the guide and the README show is what happens: examples run, commands are the tool's own."""

import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tyro

from lowprec.cli import Command, run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
READMES = [ROOT / name for name in ("README.md", "experiments/README.md", "formats/README.md")]
FOLDERS = ("experiments", "formats", "reports")
"""What examples find beside them, as if they were typed in the checkout."""


class Fence(NamedTuple):
    """A block of code in Markdown; `start` is the index of its first line."""

    language: str
    start: int
    lines: list[str]


def fences(path: Path) -> Iterator[Fence]:
    lines = path.read_text().splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if line.startswith("```"):
            if opened is not None:
                yield Fence(lines[opened][3:].strip(), opened + 1, lines[opened + 1 : number])
            opened = number if opened is None else None
    assert opened is None, f"{path}: the block of line {opened} does not end"


def examples(path: Path) -> str:
    """The page's examples where they stand, all other lines empty: failures name the right line.

    `$ lowprec ...` runs in this process, through `command`.
    """
    lines = [""] * len(path.read_text().splitlines())
    for fence in fences(path):
        if fence.language in ("pycon", "console"):
            for number, line in enumerate(fence.lines, start=fence.start):
                shell = line.removeprefix("$ ")
                lines[number] = line if shell == line else f">>> command({shell!r})"
    return "\n".join(lines)


def command(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    assert program == "lowprec" and run(arguments) == 0, line


def problems(source: str, name: str) -> str:
    """What the doctests of a page say is wrong; it must not skip any."""
    test = doctest.DocTestParser().get_doctest(source, {"command": command}, name, name, 0)
    said: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert found.attempted == len(re.findall(r"^ *>>> ", source, re.MULTILINE)) > 0
    assert bool(said) == bool(found.failed)
    return "".join(said)


def place(folder: Path, page: Path) -> None:
    """What a page's examples find: the checkout's folders, and the files that the page shows."""
    for name in FOLDERS:
        (folder / name).symlink_to(ROOT / name)
    for fence in fences(page):
        if fence.language == "toml":
            # The first line is the file's name, by which an example reads it.
            file = fence.lines[0].removeprefix("# ")
            assert re.fullmatch(r"[a-z0-9_]+\.toml", file), f"name the file: {fence.lines[0]}"
            assert file in examples(page), f"no example reads {file}"
            (folder / file).write_text("\n".join(fence.lines))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"pycon", "console", "sh", "toml", "{toctree}"}
    assert {fence.language for fence in fences(page)} <= runs, "nothing runs it"
    place(tmp_path, page)
    monkeypatch.chdir(tmp_path)
    assert not (said := problems(examples(page), page.name)), said


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_figures_in_the_text_are_printed(page: Path) -> None:
    """A figure in prose, a decimal or one with a unit, is one that an example shows."""
    lines = page.read_text().splitlines()
    for fence in fences(page):
        lines[fence.start : fence.start + len(fence.lines)] = [""] * len(fence.lines)
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", "\n".join(lines))
    number = r"\d+(?:\.\d+)?"
    units = r" ?%| (?:dB|bits|times|tokens|points|sequences)\b"
    figures = re.findall(rf"\d+\.\d+|{number}(?={units})", prose.replace(",", ""))
    assert set(figures) <= set(re.findall(number, examples(page).replace(",", "")))


@pytest.mark.slow
def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text((ROOT / "formats" / "recipes" / "mxfp4.toml").read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    code = [x for x in fences(ROOT / "README.md") if x.language == "python"]
    for fence in code:
        source = "\n" * fence.start + "\n".join(fence.lines)
        exec(compile(source, "README.md", "exec"), names)
    assert len(code) > 3


def test_a_wrong_example_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text\n\n```pycon\n>>> 1 + 1\n3\n```\n")
    assert "line 4, in page.md" in problems(examples(page), "page.md")
    page.write_text("```console\n$ lowprec list absent\n```\n")
    with pytest.raises(SystemExit):
        command(page.read_text().splitlines()[1].removeprefix("$ "))


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_the_tools_own(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    shell = [x for x in fences(page) if x.language == "sh"]
    for line in "\n".join("\n".join(x.lines) for x in shell).replace("\\\n", " ").splitlines():
        program, _, rest = line.partition(" ")
        if program == "lowprec":
            tyro.cli(Command, prog="lowprec", args=shlex.split(rest, comments=True))
        elif program == "make":
            assert set(shlex.split(rest, comments=True)) <= set(targets), line
        elif program == "python" and rest.startswith("experiments/"):
            assert (ROOT / rest.split()[0]).is_file(), line


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    named = r"`((?:reports|experiments|formats|tests|lowprec)/[\w./-]+)`"
    missing = [x for x in re.findall(named, page.read_text()) if not (ROOT / x).exists()]
    assert not missing


def test_the_guide_is_short() -> None:
    index = next(x for x in fences(DOCS / "index.md") if x.language == "{toctree}")
    listed = [line for line in index.lines if line and not line.startswith(":")]
    assert sorted(["index", *listed]) == [page.stem for page in PAGES] and len(PAGES) <= 10
