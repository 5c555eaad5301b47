"""A later release mends a routine of the toolkit, as docs/next-migration.md says."""

import shutil
import tomllib
from pathlib import Path

import pytest

from tests.deploy import ROOT, psql, schema_dump, yoyo
from tests.tenants import Connection, column, ok

RENAMED = {"0013.unfold": "0013.unfold-2", "0019.version-0.1.0": "0019.version-0.2.0"}


@pytest.fixture
def next_release(tmp_path: Path) -> str:
    """The files of a release that mends folding."""
    folder = tmp_path / "migrations"
    shutil.copytree(ROOT / "sql/migrations", folder)
    for old, new in RENAMED.items():
        for end in [".sql", ".rollback.sql"]:
            (folder / f"{old}{end}").rename(folder / f"{new}{end}")
    for file in folder.iterdir():
        text = file.read_text()
        for old, new in RENAMED.items():
            text = text.replace(f"-- depends: {old}\n", f"-- depends: {new}\n")
        text = text.replace("SELECT '0.1.0'", "SELECT '0.2.0'").replace(
            "old code has deleted", "legacy code has deleted"
        )
        file.write_text(text)
    return str(folder)


def test_this_release_and_the_next_are_as_the_next_alone(
    empty: Connection, migrated: Connection, next_release: str
) -> None:
    """What is mended is replaced in a database that has been migrated; nothing else is run, and all can be undone."""
    tenant = schema_dump(migrated, "user_1")
    runs = column(migrated, "SELECT count(*) FROM tenancy.runs")
    ok(yoyo(migrated, "apply", next_release))
    assert column(migrated, "SELECT tenancy.version()") == ["0.2.0"]
    assert column(migrated, "SELECT count(*) FROM tenancy.runs") == runs
    assert schema_dump(migrated, "user_1") == tenant
    ok(yoyo(empty, "apply", next_release))
    assert schema_dump(migrated, "tenancy", "job_stats") == schema_dump(empty, "tenancy", "job_stats")
    assert "legacy code has deleted" in schema_dump(empty, "job_stats")
    ok(yoyo(migrated, "rollback", "--all", next_release))
    assert column(migrated, "SELECT to_regnamespace('tenancy')") == [None]


def test_the_next_release_by_psql(migrated: Connection, next_release: str) -> None:
    """A file of routines can be given to psql, while tenants are migrated."""
    for name in RENAMED.values():
        ok(psql(migrated, "--single-transaction", "-f", f"{next_release}/{name}.sql"))
    assert column(migrated, "SELECT tenancy.version()") == ["0.2.0"]


def test_the_version_is_the_packages(migrated: Connection) -> None:
    """What the database says is what the wheel is called, and what the changelog tells of."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert column(migrated, "SELECT tenancy.version()") == [version]
    assert f"\n## {version}, 20" in (ROOT / "CHANGELOG.md").read_text()
