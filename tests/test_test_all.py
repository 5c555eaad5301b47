"""`make test-all`: what is run, and what is said of the rest."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from dev import test_all
from tests.deploy import ROOT

THIS = sys.version_info.minor
OTHER, *ABSENT = (minor for minor in test_all.PYTHONS if minor != THIS)


def program(path: Path, script: str) -> Path:
    """Make an executable file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_python_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim that only says how to get that Python is not taken for it; the next in PATH is."""
    shim = program(tmp_path / "shims" / f"python3.{OTHER}", "echo 'command not found' >&2; exit 127")
    python = program(tmp_path / "bin" / f"python3.{OTHER}", f"echo 3 {OTHER}")
    monkeypatch.setenv("PATH", f"{shim.parent}:{python.parent}")
    assert test_all.find_pythons() == {OTHER: str(python)}


def test_each_run_and_what_is_skipped_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each server runs with this Python and each other Python with the default server; one failure fails the whole."""
    log = tmp_path / "log"
    make = program(tmp_path / "make", f'echo "$JOB_STATS_TEST_BIN: $*" >>{log}; case $* in *VENV=*) exit 1; esac')
    monkeypatch.setenv("PATH", str(make.parent), prepend=":")
    monkeypatch.setattr(test_all, "find_servers", lambda: {18: "/18/bin", 16: "/16/bin"})
    monkeypatch.setattr(test_all, "find_pythons", lambda: {OTHER: "/bin/other"})
    assert test_all.main() == 1
    assert log.read_text().splitlines() == [
        "/18/bin: --no-print-directory test",
        "/16/bin: --no-print-directory test",
        f": --no-print-directory test VENV=.venv-3.{OTHER} PYTHON=/bin/other",
    ]
    said = capsys.readouterr().out.split()
    assert " ".join(said) == (
        f"passed: PostgreSQL 18, Python 3.{THIS}"
        " skipped: PostgreSQL 17 (not in dev/servers.txt, no /usr/lib/postgresql/17/bin)"
        f" passed: PostgreSQL 16, Python 3.{THIS}"
        " skipped: PostgreSQL 15 (not in dev/servers.txt, no /usr/lib/postgresql/15/bin)"
        f" failed: PostgreSQL 18, Python 3.{OTHER}"
    ) + "".join(f" skipped: Python 3.{minor} (no python3.{minor} in PATH that runs and has venv)" for minor in ABSENT)


def test_ci_and_classifiers_name_the_same_versions() -> None:
    """The workflow has each server and each Python, and the package says which Pythons those are."""
    workflow = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    assert set(map(str, test_all.SERVERS)) == set(re.findall(r'postgresql: "(\d+)"', workflow))
    pythons = {f"3.{minor}" for minor in test_all.PYTHONS}
    assert pythons == set(re.findall(r'python: "([\d.]+)"', workflow))
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    assert pythons == {name.rpartition(" :: ")[2] for name in classifiers if "Python :: 3." in name}
