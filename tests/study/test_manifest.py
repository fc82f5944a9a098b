"""The record of a run: entries of KV methods with their hashes, and the commit."""

import hashlib
import subprocess
from pathlib import Path

import lowprec as lp
from lowprec import catalogue
from lowprec.study.manifest import commit, manifest


def test_the_manifest_has_the_entries_of_kv_methods(tmp_path: Path) -> None:
    own = (catalogue.folder() / "kv" / "kivi_2bit.toml").read_text()
    path = tmp_path / "kivi_4bit.toml"
    path.write_text(own.replace("residual = 128", "residual = 64").replace("2bit", "4bit", 1))
    methods = [lp.get_kv_method(x) for x in ("snapkv_kivi_2bit", "mla_fp8_656", str(path))]
    found = {(x["kind"], x["name"]): x for x in manifest(methods, [], {})["catalogue"]}
    assert set(found) == {
        ("kv", "snapkv_kivi_2bit"),
        # Its store, and what that names in turn.
        ("kv", "kivi_2bit"),
        ("blocks", "int2_kivi_g32"),
        ("elements", "uint2"),
        ("elements", "float16"),
        ("kv", "mla_fp8_656"),
        ("blocks", "fp8_1x128_flashmla"),
        ("elements", "float8_e4m3fn"),
        ("elements", "float8_e8m0fnu"),
        ("elements", "bfloat16"),
        ("kv", "kivi_4bit"),
    }
    digest = hashlib.sha256(own.encode()).hexdigest()
    assert found["kv", "kivi_2bit"]["sha256"] == digest
    assert "KIVI" in found["kv", "kivi_2bit"]["citation"]
    # A user's file is not the catalogue's entry of its name.
    assert found["kv", "kivi_4bit"]["citation"] == "the user's own"
    assert found["kv", "kivi_4bit"]["sha256"] == ""


def test_the_manifest_has_the_commit_or_says_that_there_is_none(tmp_path: Path) -> None:
    assert commit(tmp_path) == "none: not run from a git checkout"
    (tmp_path / ".git").mkdir()
    assert commit(tmp_path).startswith("unknown: git does not say")
    (tmp_path / ".git").rmdir()
    options = {"check": True, "capture_output": True, "cwd": tmp_path}
    (tmp_path / "lowprec").mkdir()
    (tmp_path / "lowprec" / "code.py").write_text("1")
    for arguments in (
        ["init"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first"],
    ):
        subprocess.run(["git", *arguments], **options)
    found = commit(tmp_path)
    assert len(found) == 40 and set(found) <= set("0123456789abcdef")
    # Reports do not change what is run; code does.
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "page.html").write_text("1")
    assert commit(tmp_path) == found
    (tmp_path / "lowprec" / "code.py").write_text("2")
    assert commit(tmp_path) == f"{found}, with changes that are not committed"
    assert manifest([], [], {})["commit"] == commit()
