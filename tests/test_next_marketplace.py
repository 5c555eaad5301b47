"""The worked examples of docs/next-migration.md that change the statistics, run as they stand there."""

import datetime
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from dev.names import problems
from stats_lib import get_platform_summary
from tests.deploy import ROOT, connect, libpq_env, psql, schema_dump, yoyo
from tests.tenants import VERIFY, Connection, clone, column, ok, states
from tests.test_docs import blocks, named

STATS = "user_1.marketplace_job_stats"
Counts = dict[tuple[str, int], int]
EXAMPLES = {
    "0023": blocks("docs/next-migration.md", "sql", "0023.depop"),
    "0024": blocks("docs/next-migration.md", "sql", "0024.last-job-at"),
    "0025": blocks("docs/next-migration.md", "sql", "0025.split-old-rows"),
}


@pytest.fixture
def files(tmp_path: Path) -> Callable[[str], Path]:
    """The folder with the two files of an example."""

    def of(number: str) -> Path:
        folder = tmp_path / number
        folder.mkdir()
        for sql in EXAMPLES[number]:
            (folder / named(sql)).write_text(sql)
            assert not list(problems(named(sql), sql))
        assert len(list(folder.iterdir())) == 2
        return folder

    return of


def count(conn: Connection, marketplace: str, jobs: int, action_type_id: int = 900, table: str = STATS) -> None:
    """Count jobs of one day as the library does."""
    conn.execute(
        f"INSERT INTO {table} AS s (action_type_id, marketplace, date, total_jobs, success_count) "
        "VALUES (%s, %s, '2026-01-01', %s, %s) ON CONFLICT (action_type_id, marketplace, date) "
        "DO UPDATE SET total_jobs = s.total_jobs + excluded.total_jobs, "
        "success_count = s.success_count + excluded.success_count".encode(),
        [action_type_id, marketplace, jobs, jobs],
    )


def counts(conn: Connection) -> Counts:
    """The jobs of each marketplace and action type on that day."""
    found = conn.execute(
        f"SELECT marketplace, action_type_id, total_jobs FROM {STATS} WHERE date = '2026-01-01'".encode()
    )
    return {(marketplace, action): jobs for marketplace, action, jobs in found}


def test_another_marketplace(legacy: Connection, files: Callable[[str], Path]) -> None:
    """With depop's rows all the way down and all the way up: every marketplace's counts are back, and more is kept."""
    sources = ["sql/migrations", str(files("0023"))]
    before = schema_dump(legacy, "user_2")
    ok(yoyo(legacy, "apply"))
    migrated = schema_dump(legacy, "user_2")
    ok(yoyo(legacy, "apply", *sources))
    count(legacy, "vinted", 1)
    count(legacy, "ebay", 2)
    count(legacy, "depop", 4)
    count(legacy, "depop", 8, action_type_id=901)  # where Vinted has none
    split = counts(legacy)

    ok(yoyo(legacy, "rollback", "--revision", "0023", *sources))
    assert counts(legacy) == {("vinted", 900): 5, ("ebay", 900): 2, ("vinted", 901): 8}
    ok(psql(legacy, "-f", VERIFY))
    assert schema_dump(legacy, "user_2") == migrated
    ok(yoyo(legacy, "rollback", "--revision", "0020", *sources))
    assert schema_dump(legacy, "user_2") == before
    jobs = "SELECT total_jobs FROM user_1.vinted_job_stats WHERE date = '2026-01-01' ORDER BY action_type_id"
    assert column(legacy, jobs) == [7, 8]
    legacy.execute(
        "UPDATE user_1.vinted_job_stats SET total_jobs = total_jobs + 16, success_count = success_count + 16 "
        "WHERE date = '2026-01-01'"
    )

    ok(yoyo(legacy, "apply"))
    assert counts(legacy) == {("vinted", 900): 21, ("ebay", 900): 2, ("vinted", 901): 24}
    ok(yoyo(legacy, "apply", *sources))
    assert counts(legacy) == split | {("vinted", 900): 17, ("vinted", 901): 16}
    ok(yoyo(legacy, "rollback", "--all", *sources))


def test_a_rollback_by_an_older_release(legacy: Connection, files: Callable[[str], Path]) -> None:
    """What it does not know it does not forget: applied again, later migrations are named as lacking, and swept."""
    sources = ["sql/migrations", str(files("0023")), str(files("0024"))]
    ok(yoyo(legacy, "apply", *sources))
    count(legacy, "ebay", 2)
    count(legacy, "depop", 4)
    split = counts(legacy)
    ok(yoyo(legacy, "rollback", "--revision", "0020"))
    ok(psql(legacy, "-c", "CALL job_stats.verify(expected => 'legacy')"))
    with pytest.raises(psycopg.Error, match=r"still applied: 0023\.depop, 0024\.last-job-at"):
        legacy.execute("CALL tenancy.refuse_while_needed()")

    legacy.execute(f"ALTER TABLE {STATS}_archive RENAME TO marketplace_job_stats_depop".encode())
    named = yoyo(legacy, "apply", *sources)
    assert named.returncode != 0
    assert "user_2: has not had 0023.depop; has not had 0024.last-job-at" in named.stderr
    ok(psql(legacy, "-c", "CALL job_stats.sweep()"))
    ok(psql(legacy, "-f", VERIFY))
    assert counts(legacy) == split


def test_the_sums_of_another_marketplace(migrated: Connection, files: Callable[[str], Path], tmp_path: Path) -> None:
    """The next release sums depop up, with jobs or without; this one leaves it out, and plain SQL shows it."""
    library = tmp_path / "stats_lib"
    shutil.copytree(ROOT / "stats_lib", library, ignore=shutil.ignore_patterns("sql", "__pycache__"))
    types = (library / "_types.py").read_text()
    (library / "_types.py").write_text(types.replace('    ETSY = "etsy"\n', '    ETSY = "etsy"\n    DEPOP = "depop"\n'))
    program = (
        "import datetime, psycopg, stats_lib\n"
        "with psycopg.connect() as conn:\n"
        "    for row in stats_lib.get_platform_summary(conn, days=1, until=datetime.date(2026, 1, 1)):\n"
        "        print(row.marketplace, row.tenants, row.total_jobs, row.avg_duration_ms, row.tenants_skipped)\n"
    )

    def of_the_next_release() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**libpq_env(migrated), "PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert not done.stderr
        return done.stdout.splitlines()

    migrated.execute("REASSIGN OWNED BY legacy_owner TO current_user")  # so that a superuser reads all tenants
    nothing = ["depop 0 0 None 1", "ebay 0 0 None 1", "etsy 0 0 None 1", "vinted 0 0 None 1"]
    assert of_the_next_release() == nothing
    ok(yoyo(migrated, "apply", "sql/migrations", str(files("0023"))))
    count(migrated, "depop", 4)
    count(migrated, "depop", 8, table="user_2.marketplace_job_stats")
    assert of_the_next_release() == ["depop 2 12 None 1", *nothing[1:]]
    day = datetime.date(2026, 1, 1)
    known = [row.marketplace.value for row in get_platform_summary(migrated, days=1, until=day)]
    assert known == ["ebay", "etsy", "vinted"]
    shown = "SELECT marketplace FROM job_stats.platform_summary(1, '2026-01-01')"
    assert column(migrated, shown) == ["depop", "ebay", "etsy", "vinted"]


def test_a_straggler_of_another_marketplace_is_named_and_swept(
    migrated: Connection, files: Callable[[str], Path]
) -> None:
    """A canary is no drift; after the run, who has not had it is named, and one call does all that is lacking."""
    folder = files("0023")
    canary = ["-c", "SET tenancy.tenants = 'user_2'"]
    ok(psql(migrated, *canary, "-f", str(folder / "0023.depop.sql")))
    ok(psql(migrated, "-f", VERIFY))
    ok(psql(migrated, *canary, "-f", str(folder / "0023.depop.rollback.sql")))
    ok(psql(migrated, "-f", VERIFY))
    ok(yoyo(migrated, "apply", "sql/migrations", str(folder)))
    ok(psql(migrated, *canary, "-f", str(folder / "0023.depop.rollback.sql")))
    clone(migrated, "user_old", "users.vinted_job_stats")
    named = psql(migrated, "-f", VERIFY).stderr
    assert "user_2: has not had 0023.depop" in named
    assert "user_old: is legacy" in named
    ok(psql(migrated, "-c", "CALL job_stats.sweep()"))
    ok(psql(migrated, "-c", "CALL job_stats.verify(expected => 'migrated')"))
    count(migrated, "depop", 1, table="user_old.marketplace_job_stats")


def test_another_column(legacy: Connection, files: Callable[[str], Path]) -> None:
    """The legacy view never shows it, each tenant is to have it, and 0020's rollback alone leaves none behind.

    What that has folded comes back without it.
    """
    folder = files("0024")
    both = ["sql/migrations", "sql/contract"]
    before = schema_dump(legacy, "user_1")
    ok(yoyo(legacy, "apply"))
    view = "SELECT attname FROM pg_attribute WHERE attrelid = 'user_1.vinted_job_stats'::regclass ORDER BY attnum"
    shown = column(legacy, view)
    ok(yoyo(legacy, "apply", "sql/migrations", str(folder)))
    ok(yoyo(legacy, "apply", *both, str(folder)))
    ok(yoyo(legacy, "rollback", "--revision", "0900", *both, str(folder)))
    assert column(legacy, view) == shown
    ok(psql(legacy, "-f", VERIFY))

    canary = ["-c", "SET tenancy.tenants = 'user_2'"]
    ok(psql(legacy, *canary, "-f", str(folder / "0024.last-job-at.rollback.sql")))
    assert "user_2: has not had 0024.last-job-at" in psql(legacy, "-f", VERIFY).stderr
    ok(psql(legacy, "-c", "CALL tenancy.sweep()"))
    ok(psql(legacy, "-f", VERIFY))

    count(legacy, "ebay", 5, table="user_2.marketplace_job_stats")
    ok(psql(legacy, "-f", "sql/migrations/0020.marketplace-job-stats.rollback.sql"))
    assert schema_dump(legacy, "user_1") == before
    ok(psql(legacy, "-f", VERIFY))
    ok(psql(legacy, "-f", "sql/migrations/0020.marketplace-job-stats.sql"))  # though the archive has last_job_at
    ebay = "SELECT total_jobs FROM user_2.marketplace_job_stats WHERE marketplace = 'ebay'"
    assert column(legacy, ebay) == [5]


def test_another_column_where_a_tenant_has_one_of_its_own(migrated: Connection, files: Callable[[str], Path]) -> None:
    """The tenant is refused by name, and keeps its column through the rollback; clones of the template go along."""
    folder = files("0024")
    migrated.execute(f"ALTER TABLE {STATS} ADD COLUMN last_job_at timestamptz DEFAULT '2026-01-01'".encode())
    refused = psql(migrated, "-f", str(folder / "0024.last-job-at.sql"))
    assert 'user_1: column "last_job_at" of relation "marketplace_job_stats" already exists' in refused.stderr
    assert "19 done, 0 done before, 1 FAILED" in refused.stderr
    migrated.execute("CALL job_stats.add_tenant('user_new')")
    rolled_back = ok(psql(migrated, "-f", str(folder / "0024.last-job-at.rollback.sql")))
    assert re.search(r"rollback \| +20 \| +1 \| +0 \|", rolled_back)
    assert column(migrated, f"SELECT count(last_job_at) > 0 FROM {STATS}") == [True]


def test_a_rollback_without_the_later_marketplace(legacy: Connection, files: Callable[[str], Path]) -> None:
    """The tenant is named on the way up, and what the runbook says brings every count back."""
    sources = ["sql/migrations", str(files("0023"))]
    ok(yoyo(legacy, "apply", *sources))
    for jobs, marketplace in enumerate(["vinted", "ebay", "depop"], start=1):
        count(legacy, marketplace, jobs)
    split = counts(legacy)
    ok(yoyo(legacy, "rollback", "--revision", "0020"))
    refused = yoyo(legacy, "apply")
    assert "user_1: " in refused.stderr
    assert 'violates check constraint "ck_marketplace_job_stats_marketplace"' in refused.stderr
    legacy.execute("ALTER TABLE user_1.marketplace_job_stats_archive RENAME TO marketplace_job_stats_depop")
    yoyo(legacy, "apply")
    ok(psql(legacy, "-f", f"{sources[1]}/0023.depop.sql"))
    assert counts(legacy) == split
    ok(psql(legacy, "-f", VERIFY))


def test_a_column_of_the_tenants_own_stays(migrated: Connection) -> None:
    """Added while the table had its new name, it is neither shown by the view nor dropped by the rollback."""
    migrated.execute(f"ALTER TABLE {STATS} ADD note text, ADD last_job_at timestamptz DEFAULT now()".encode())
    ok(yoyo(migrated, "rollback", "--revision", "0020"))
    assert column(migrated, "SELECT count(last_job_at) > 0 FROM user_1.vinted_job_stats") == [True]


def test_old_rows_to_their_marketplace(legacy: Connection, files: Callable[[str], Path]) -> None:
    """By the application's table; down, all is Vinted's again; up again, and all the way, every count is back."""
    legacy.execute(
        """
        CREATE SCHEMA app;
        CREATE TABLE app.action_types (id integer PRIMARY KEY, marketplace varchar(20) NOT NULL);
        INSERT INTO app.action_types VALUES (1, 'vinted'), (2, 'ebay'), (3, 'etsy'), (4, 'ebay');
        GRANT USAGE ON SCHEMA app TO public;
        GRANT SELECT ON app.action_types TO public
        """
    )
    sources = ["sql/migrations", str(files("0025"))]
    query = "SELECT action_type_id, sum(total_jobs) FROM user_owner.vinted_job_stats GROUP BY 1"
    total: dict[int, int] = dict(legacy.execute(query).fetchall())
    ok(yoyo(legacy, "apply"))
    # The day of the deploy: eBay's jobs were counted by new code, too.
    legacy.execute(
        "INSERT INTO user_owner.marketplace_job_stats (action_type_id, date, marketplace, total_jobs, success_count) "
        "SELECT 2, max(date), 'ebay', 5, 5 FROM user_owner.marketplace_job_stats"
    )
    total[2] += 5
    split = "SELECT marketplace, action_type_id, sum(total_jobs) FROM user_owner.marketplace_job_stats GROUP BY 1, 2"
    unassigned = set(legacy.execute(split).fetchall())
    for event in ("DELETE", "UPDATE"):
        legacy.execute(
            f"""
            CREATE FUNCTION app.frozen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
            CREATE TRIGGER frozen BEFORE {event} ON user_owner.marketplace_job_stats
            FOR EACH ROW WHEN (OLD.action_type_id = 2 AND OLD.total_jobs > 0) EXECUTE FUNCTION app.frozen()
            """.encode()
        )
        assert "user_owner: " in yoyo(legacy, "apply", *sources).stderr
        assert set(legacy.execute(split).fetchall()) == unassigned
        legacy.execute("DROP FUNCTION app.frozen CASCADE")
    ok(yoyo(legacy, "apply", *sources))
    theirs = {1: "vinted", 2: "ebay", 3: "etsy", 4: "ebay"}
    expected = {(theirs[action], action, jobs) for action, jobs in total.items()}
    assert set(legacy.execute(split).fetchall()) == expected
    ok(psql(legacy, "-f", VERIFY))
    with connect(legacy) as again:
        ok(psql(again, "-f", f"{sources[1]}/0025.split-old-rows.sql"))
    assert set(legacy.execute(split).fetchall()) == expected
    ok(yoyo(legacy, "rollback", "--revision", "0025", *sources))
    assert set(legacy.execute(split).fetchall()) == {("vinted", action, jobs) for action, jobs in total.items()}
    ok(yoyo(legacy, "apply", *sources))
    assert set(legacy.execute(split).fetchall()) == expected
    ok(yoyo(legacy, "rollback", "--revision", "0020", *sources))
    ok(yoyo(legacy, "apply", *sources))
    assert set(legacy.execute(split).fetchall()) == expected
    assert set(states(legacy).values()) == {"migrated", "missing"}
