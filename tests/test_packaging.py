"""What `pip install` gets."""

import shlex
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.deploy import ROOT, libpq_env
from tests.tenants import Connection, definitions, states, tenants
from tests.test_docs import blocks


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("dist")
    build: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, cwd=folder, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_is_complete(wheel: Path) -> None:
    """The wheel holds the library with its SQL and types, the migrations as they are, and nothing else."""
    library = [path for path in (ROOT / "stats_lib").iterdir() if path.suffix in (".py", ".sql", ".typed")]
    expected = {f"stats_lib/{path.relative_to(ROOT / 'stats_lib')}": path.read_bytes() for path in library}
    expected |= {f"stats_lib/{path.relative_to(ROOT)}": path.read_bytes() for path in (ROOT / "sql").rglob("*.sql")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        (licence,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert expected == packed


def test_the_source_distribution_is_what_is_in_git(wheel: Path) -> None:
    """Whoever gets the source distribution gets the tests, the documents and the licence, too, and nothing else."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (source,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert set(tracked.splitlines()) <= packed
    assert {name.partition("/")[0] for name in {*tracked.splitlines(), "PKG-INFO"}} == {
        name.partition("/")[0] for name in packed
    }


def test_the_wheel_needs_no_source_distribution(wheel: Path, tmp_path: Path) -> None:
    """Built from the checkout, as `pip install .` does, the wheel is the same."""
    build: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, cwd=tmp_path, stdout=subprocess.DEVNULL)
    (direct,) = tmp_path.glob("*.whl")
    assert wheel.read_bytes() == direct.read_bytes()


def test_migrations_from_the_wheel(legacy: Connection, wheel: Path, tmp_path: Path) -> None:
    """Without a checkout, the README's command migrates every tenant and verifies it, and can be rolled back."""
    target = tmp_path / "installed"
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
    ]
    subprocess.run(install, check=True, cwd=tmp_path)
    (block,) = blocks("README.md", "sh", "package:stats_lib")
    command = block.strip().removeprefix("yoyo ")
    environment = {**libpq_env(legacy), "PYTHONPATH": str(target)}

    def yoyo(arguments: str) -> str:
        run = [sys.executable, "-m", "yoyo", *shlex.split(arguments)]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    before = definitions(legacy, tenants(legacy))
    assert "verified" in yoyo(command)
    assert set(states(legacy).values()) == {"migrated", "missing"}
    assert yoyo(command) == ""
    yoyo(command.replace("apply", "rollback") + " --revision 0020")
    assert definitions(legacy, tenants(legacy)) == before


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
