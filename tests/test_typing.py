"""The library's types, as mypy sees them where it is used."""

import subprocess
import sys

from tests.deploy import ROOT


def test_types() -> None:
    """Right uses have no errors, and wrong ones have: in `usage.py`, an ignored error that is not there is one."""
    mypy = [sys.executable, "-m", "mypy", "--strict", "tests/usage.py"]
    checked = subprocess.run(mypy, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
