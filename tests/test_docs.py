"""Every command in the documents works as it stands there, in that order."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dev import api, demo
from tests.deploy import ROOT, connect, libpq_env
from tests.tenants import Connection, states

ELSEWHERE = ("make ", "yoyo apply --no-config-file")  # run by CI, and by test_packaging, which has a wheel


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document, those in lists too."""
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^ *```", (ROOT / document).read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


@pytest.mark.parametrize("document", ["README.md", "docs/runbook.md"])
def test_commands(legacy: Connection, document: str) -> None:
    """A DBA who follows the document from top to bottom meets no error, and an error would end each command."""
    env = libpq_env(legacy)
    env |= {"PSQLRC": "/dev/null", "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    commands = [block for block in blocks(document, "sh") if not block.startswith(ELSEWHERE)]
    assert commands
    printed = ""
    for command in commands:
        assert command.count("psql ") == command.count("psql -v ON_ERROR_STOP=1 ")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed += done.stdout
    if document == "docs/runbook.md":
        assert legacy.execute("SELECT to_regnamespace('job_stats')").fetchone() == (None,)
    else:
        assert set(states(legacy).values()) == {"legacy", "missing"}
        assert {shape(line) for line in sample() if " | " in line} <= set(map(shape, printed.splitlines()))


def sample() -> list[str]:
    """What the README says that the demo prints."""
    (block,) = blocks("README.md", "text")
    return block.splitlines()


def shape(line: str) -> str:
    """A line of the demo without its numbers, which vary."""
    return " ".join(re.sub(r"[\d.]+%?", "N", line).split())


def test_the_sample_of_the_demo(migrated: Connection, capsys: pytest.CaptureFixture[str]) -> None:
    """What the README shows of `make demo`, which CI runs, are its titles, its checks and its statistics."""
    demo.record_jobs(migrated)
    demo.show_statistics(migrated)
    statistics = list(map(shape, capsys.readouterr().out.splitlines()))
    source = Path(demo.__file__).read_text("utf-8").replace("{TENANT}", demo.TENANT)
    for line in sample():
        if " | " in line:
            continue  # yoyo's: see test_commands
        if line.startswith(("== ", "   ok: ")):
            assert f'"{re.sub("^ *(==|ok:) ", "", line)}"' in source, line
        else:
            assert shape(line) in statistics


def test_many_clusters(legacy: Connection, tmp_path: Path) -> None:
    """The commands of docs/scaling.md migrate every cluster that the service file names, and tell of each."""
    here = libpq_env(legacy)
    databases = {"north": legacy.info.dbname, "south": f"{legacy.info.dbname}_south"}
    (tmp_path / "clusters.txt").write_text("".join(f"{name}\n" for name in databases))
    services = [
        f"[{name}]\nhost={here['PGHOST']}\nport={here['PGPORT']}\nuser={here['PGUSER']}\ndbname={dbname}\n"
        for name, dbname in databases.items()
    ]
    (tmp_path / "services").write_text("".join(services))
    env = {name: value for name, value in here.items() if not name.startswith("PG") or name == "PGPASSWORD"}
    env |= {"PGSERVICEFILE": str(tmp_path / "services"), "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    (tmp_path / "yoyo.ini").write_text((ROOT / "yoyo.ini").read_text().replace("%(here)s", str(ROOT)))
    (commands,) = blocks("docs/scaling.md", "sh")
    with connect(legacy, dbname="postgres") as other:
        legacy.close()
        other.execute(f'CREATE DATABASE "{databases["south"]}" TEMPLATE "{databases["north"]}"'.encode())
        try:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=env, capture_output=True, text=True
            )
        finally:
            other.execute(f'DROP DATABASE "{databases["south"]}" WITH (FORCE)'.encode())
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+)\|migrated\|\d+$", done.stdout, re.MULTILINE) == ["north", "south"]


def test_the_bug_report(migrated: Connection) -> None:
    """What the issue template asks for can be had with its commands."""
    (commands,) = blocks(".github/ISSUE_TEMPLATE/bug.md", "sh")
    env = libpq_env(migrated)
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    bash = ["bash", "-euo", "pipefail", "-c", commands]
    report = subprocess.run(bash, cwd=ROOT, env=env, capture_output=True, text=True)
    assert report.returncode == 0, report.stderr
    assert re.search(r"^\d+\.\d+\.\d+\|PostgreSQL 1\d", report.stdout)
    assert re.search(r"^ migrated +\|", report.stdout, re.MULTILINE)
    assert re.search(r"^Python 3\.\d+.* psycopg 3\.\d+", report.stdout, re.MULTILINE)


def test_the_two_pictures_of_the_change_differ_in_colours_only() -> None:
    """What the README shows on a dark page is what it shows on a light one."""
    light, dark = ((ROOT / f"docs/change-{page}.svg").read_text("utf-8") for page in ("light", "dark"))
    assert light != dark
    assert re.sub("#[0-9a-f]{6}", "", light) == re.sub("#[0-9a-f]{6}", "", dark)


def test_the_example_for_developers(migrated: Connection) -> None:
    """The README's Python runs as it stands, and counts what it says."""
    (example,) = blocks("README.md", "python")
    python = [sys.executable, "-c", example]
    ran = subprocess.run(python, cwd=ROOT, env=libpq_env(migrated), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"\d{4}-\d\d-\d\d 7 1 100% 2000\n", ran.stdout)
    with connect(migrated) as other:
        counted = other.execute(
            "SELECT sum(total_jobs) FROM user_1.marketplace_job_stats WHERE marketplace <> 'vinted'"
        )
        assert counted.fetchone() == (1,)


def test_the_api_page_is_up_to_date() -> None:
    """docs/api.md says what the docstrings say; `python -m dev.api` writes it."""
    assert api.PAGE.read_text("utf-8") == api.page()


def test_links_and_promises() -> None:
    """What the documents link to is there."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob(".github/**/*.md")]:
        for target in re.findall(r'(?:\]\(|src="|srcset=")(?!http)([^)#"]+)', document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
