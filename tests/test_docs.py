"""Every command in the documents is run by a test as it stands there, and whatever they name is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dev import api, demo
from tests.deploy import ROOT, bash, connect, libpq_env, services
from tests.tenants import Connection, states

DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
TESTS = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
# A call in a test that names a document and a language runs its blocks; if it names a mark, too, those that have it.
RUN = re.findall(r'\((?:\w+, )?"([\w/-]+\.md)", "(\w+)"(?:, "([^"]+)")?\)', TESTS)


def blocks(document: str, language: str, mark: str = "") -> list[str]:
    """The fenced blocks of a document, those in lists too, with `mark` in them; none that says why it is not run."""
    found = re.findall(
        rf"^(<!-- not run: [^\n]+ -->\n)?( *)```{language}\n(.*?)^ *```",
        (ROOT / document).read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    texts = [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for reason, indent, block in found if not reason]
    return [text for text in texts if mark in text]


def named(sql: str) -> str:
    """The file that an example of a migration goes into."""
    (name,) = re.findall(r"migration => '(.*?)'", sql)
    return f"{name}.sql"


def follow(conn: Connection, document: str, language: str) -> str:
    """Run what no other test runs, from top to bottom; return what it prints, which is what the text after it says."""
    printed_by_all = ""
    text = (ROOT / document).read_text("utf-8")
    elsewhere = [mark for where, _, mark in RUN if where == document and mark]
    for command in blocks(document, language):
        if any(mark in command for mark in elsewhere):
            continue
        assert command.count("psql ") == command.count("psql -v ON_ERROR_STOP=1 ")
        printed = re.sub(" +", " ", bash(command, libpq_env(conn)))
        text = text.partition(f"```{language}\n{command}")[2]
        for heads in re.findall(r"`(\w+(?: \| \w+)+)`", text.partition("```sh")[0]):
            assert heads in printed, f"{command}\n{printed}"
        printed_by_all += printed + "\n"
    return printed_by_all


def test_the_readme(legacy: Connection) -> None:
    """A DBA who follows it from top to bottom meets no error, sees what it shows, and has legacy tables in the end."""
    printed = follow(legacy, "README.md", "sh")
    assert set(states(legacy).values()) == {"legacy", "missing"}
    assert {shape(line) for line in sample() if " | " in line} <= set(map(shape, printed.splitlines()))


def test_the_runbook(legacy: Connection) -> None:
    """A DBA who follows it from top to bottom meets no error, and nothing is left in the end."""
    follow(legacy, "docs/runbook.md", "sh")
    assert legacy.execute("SELECT to_regnamespace('job_stats')").fetchone() == (None,)


def test_make() -> None:
    """CI, or a test, runs the README's make commands."""
    for line in "".join(blocks("README.md", "sh", "make ")).splitlines():
        (command,) = re.findall(r"^make \S+", line)
        assert command in (ROOT / ".ci/run").read_text("utf-8").splitlines() or f"`{command}` has" in TESTS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_is_run(document: str) -> None:
    """A test runs each command, statement and example, unless the line above it says why not."""
    text = (ROOT / document).read_text("utf-8")
    assert set(re.findall(r"^ *```(\S+)", text, re.MULTILINE)) <= {"sh", "sql", "python", "text"}
    for language in ["sh", "sql", "python"]:
        marks = [mark for where, of, mark in RUN if (where, of) == (document, language)]
        for block in blocks(document, language):
            assert any(mark in block for mark in marks), block


FOREIGN = [  # what readers have, or will write
    "pg_service.conf",
    "0013.unfold-2",
    "0022.orders-priority",
    "0023.depop",
    "0024.last-job-at",
    "0025.split-old-rows",
]


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
            continue  # yoyo's: see test_the_readme
        if line.startswith(("== ", "   ok: ")):
            assert f'"{re.sub("^ *(==|ok:) ", "", line)}"' in source, line
        else:
            assert shape(line) in statistics


def test_many_clusters(legacy: Connection, tmp_path: Path) -> None:
    """The commands of docs/scaling.md migrate every cluster that the service file names, and tell of each."""
    north = legacy.info.dbname
    (tmp_path / "clusters.txt").write_text("north\nsouth\n")
    (tmp_path / "yoyo.ini").write_text((ROOT / "yoyo.ini").read_text().replace("%(here)s", str(ROOT)))
    (commands,) = blocks("docs/scaling.md", "sh")
    with connect(legacy, dbname="postgres") as other:
        legacy.close()
        other.execute(f'CREATE DATABASE "{north}_south" TEMPLATE "{north}"'.encode())
        try:
            with connect(other, dbname=north) as here, connect(other, dbname=f"{north}_south") as there:
                printed = bash(commands, services(tmp_path / "services", north=here, south=there), tmp_path)
        finally:
            other.execute(f'DROP DATABASE "{north}_south" WITH (FORCE)'.encode())
    assert re.findall(r"^(\w+)\|migrated\|\d+$", printed, re.MULTILINE) == ["north", "south"]


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


def test_the_examples_for_developers(migrated: Connection) -> None:
    """The README's Python runs as it stands, and counts what it says."""
    printed = [
        subprocess.check_output([sys.executable, "-c", example], cwd=ROOT, env=libpq_env(migrated), text=True)
        for example in blocks("README.md", "python")
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d 7 1 100% 2000\n", printed[0])
    assert re.fullmatch(r"ebay 1 100%\netsy 2 50%\nvinted \d+ \d+%\n", printed[1])
    with connect(migrated) as other:
        counted = other.execute(
            "SELECT sum(total_jobs) FROM user_1.marketplace_job_stats WHERE marketplace <> 'vinted'"
        )
        assert counted.fetchone() == (3,)


def test_the_api_page_is_up_to_date() -> None:
    """docs/api.md says what the docstrings say; `python -m dev.api` writes it."""
    assert api.PAGE.read_text("utf-8") == api.page()


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)", document.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links() -> None:
    """What the documents link to is there, down to the heading."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md"), *ROOT.glob(".github/**/*.md")]:
        links = re.findall(r'(?:\]\(|src="|srcset=")(?!http)([^)#"]*)#?([^)"]*)', document.read_text("utf-8"))
        for target, anchor in links:
            linked = document.parent / target if target else document
            assert linked.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(linked), f"{document.name}: {target}#{anchor}"


def test_what_is_named_is_there() -> None:
    """Files that the documents, the SQL and its errors name are there, and so are the sections."""
    names = {path.name for path in ROOT.glob("[!.]*/**/*.*")} | {path.name for path in ROOT.iterdir()}
    names |= {name + end for name in FOREIGN for end in ["", ".sql", ".rollback.sql"]}
    for document in DOCUMENTS:
        text = (ROOT / document).read_text("utf-8")
        for name in re.findall(r"`(?:[\w.-]+/)*([\w.-]+\.(?:md|sql|py|ini|toml|txt|conf))`", text):
            assert name in names, f"{document}: {name}"
    for path in [ROOT / "yoyo.ini", *ROOT.glob("sql/**/*.sql"), *ROOT.glob("stats_lib/*")]:
        if path.is_file():
            for name, section in re.findall(r'(docs/[\w-]+\.\w+)(?:, "([^"]+)")?', path.read_text("utf-8")):
                assert (ROOT / name).exists(), f"{path.name}: {name}"
                found = {re.sub(r"^\d+-", "", anchor) for anchor in anchors(ROOT / name)}
                assert not section or section.lower().replace(" ", "-") in found, f"{path.name}: {section}"
