"""What `pip install` gets."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from tests.deploy import ROOT


def test_the_wheel_is_complete(tmp_path: Path) -> None:
    """The wheel holds the library with its SQL and types, and nothing else; psycopg is all it needs."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = {path.name for path in (ROOT / "stats_lib").iterdir() if path.suffix in (".py", ".sql", ".typed")}
    assert names == {f"stats_lib/{name}" for name in tracked}


def test_what_is_pinned_satisfies_what_is_declared() -> None:
    """The tests run with psycopg and yoyo as pip would choose them for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert [requirement.partition(">=")[0] for requirement in project["dependencies"]] == ["psycopg"]
    pinned = (ROOT / "dev/requirements.txt").read_text("utf-8")
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["migrate"]]:
        assert f"\n{requirement.partition('>=')[0]}==" in pinned


def test_no_file_names_a_package_index() -> None:
    """What is installed from where is for each machine to say."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, files.split("\0")):
        text = (ROOT / name).read_text("utf-8", errors="replace")
        for word in ["index" + "-url", "find" + "-links"]:
            assert word not in text, name
