"""The library's types, as mypy and pyright see them where it is used."""

import subprocess
import sys

import pytest

from tests.deploy import ROOT

CHECKERS = {
    "mypy": ["mypy", "--strict", "--no-warn-unused-ignores"],
    "pyright": ["pyright", "--pythonpath", sys.executable],
}


def errors(checker: str, *files: str) -> str:
    """What a type checker says of files, or nothing if it accepts them."""
    command = [sys.executable, "-m", *CHECKERS[checker], *files]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return checked.returncode * (checked.stdout + checked.stderr)


@pytest.mark.parametrize("checker", CHECKERS)
def test_types(checker: str) -> None:
    """Right uses have no errors, and wrong ones have: in `usage.py`, an ignored error that is not there is one."""
    assert not errors(checker, "tests/usage.py")
