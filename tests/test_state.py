"""What a rollback restores is state, not a log: it survives what a database lives through, or is refused by name."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.deploy import bash, connect, libpq_env, psql, schema_dump, services, yoyo
from tests.tenants import (
    DOWN,
    DOWNGRADE,
    UNEXACT,
    UP,
    UPGRADE,
    VERIFY,
    Connection,
    clone,
    column,
    definitions,
    ok,
    running,
    states,
    tenants,
)
from tests.test_docs import blocks

KEYS = """
    ALTER TABLE user_2.vinted_job_stats DROP CONSTRAINT vinted_job_stats_action_type_id_date_key;
    ALTER TABLE user_2.vinted_job_stats ADD CONSTRAINT uq_stats_per_day UNIQUE (action_type_id, date);
    ALTER TABLE user_2.vinted_job_stats ADD CONSTRAINT fk_mine FOREIGN KEY (action_type_id)
        REFERENCES vinted.action_types (id) ON DELETE CASCADE;
    COMMENT ON CONSTRAINT uq_stats_per_day ON user_2.vinted_job_stats IS 'one row a day';
"""


def as_before(conn: Connection, before: dict[str, str]) -> None:
    """Every tenant is described as it was, byte for byte."""
    assert definitions(conn, before) == before
    assert column(conn, "SELECT to_regclass('template_tenant.vinted_job_stats_id_seq') IS NOT NULL") == [True]


@pytest.fixture
def before(toolkit: Connection) -> dict[str, str]:
    """How every tenant was described before the change, one of them with keys of its own; they have had it since."""
    toolkit.execute(KEYS)
    described = definitions(toolkit, tenants(toolkit))
    ok(psql(toolkit, *UP))
    return described


@contextmanager
def database(conn: Connection, name: str) -> Iterator[Connection]:
    """Make an empty database on the same server, and drop it on the way out."""
    conn.execute(f'CREATE DATABASE "{name}" TEMPLATE template0'.encode())
    try:
        with connect(conn, dbname=name) as other:
            yield other
    finally:
        conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def pg_dump(conn: Connection, *args: str) -> str:
    """What pg_dump says of a database, rows included, without what an older server does not know."""
    command = ["pg_dump", "--restrict-key=same", *args]
    dump = subprocess.run(command, env=libpq_env(conn), check=True, capture_output=True, text=True).stdout
    return dump.replace("SET transaction_timeout = 0;\n", "")


def test_a_pruned_journal(toolkit: Connection, before: dict[str, str]) -> None:
    """Without any of the log, the rollback restores every name, key and comment."""
    toolkit.execute("DELETE FROM tenancy.runs")
    assert column(toolkit, "SELECT count(*) FROM tenancy.journal") == [0]
    ok(psql(toolkit, *DOWN))
    as_before(toolkit, before)


def test_renamed_and_swapped_schemas(toolkit: Connection, before: dict[str, str]) -> None:
    """A tenant whose schema was renamed, and two whose names were swapped, get what was theirs."""
    for old, new in [("user_2", "user_2_acme"), ("user_1", "user_x"), ("user_3", "user_1"), ("user_x", "user_3")]:
        toolkit.execute(f"ALTER SCHEMA {old} RENAME TO {new}".encode())
    ok(psql(toolkit, *DOWN))
    for old, new in [("user_1", "user_x"), ("user_3", "user_1"), ("user_x", "user_3"), ("user_2_acme", "user_2")]:
        toolkit.execute(f"ALTER SCHEMA {old} RENAME TO {new}".encode())
    as_before(toolkit, before)


def test_a_renamed_tenant_whose_key_was_renamed(toolkit: Connection, before: dict[str, str]) -> None:
    """What is kept of it is known by neither name: refused, and nothing is forgotten; with its key it comes back."""
    key = "uq_marketplace_job_stats_action_marketplace_date"
    rename = "ALTER TABLE user_7.marketplace_job_stats RENAME CONSTRAINT {} TO {}"
    toolkit.execute(f"ALTER SCHEMA user_2 RENAME TO user_7; {rename.format(key, 'uq_new')}".encode())
    refused = psql(toolkit, *DOWN)
    assert f"user_7: user_7.marketplace_job_stats has no key {key}, and tenancy.undo says only" in refused.stderr
    assert "1 FAILED" in refused.stderr
    toolkit.execute(rename.format("uq_new", key).encode())
    ok(psql(toolkit, "-f", DOWNGRADE))
    toolkit.execute("ALTER SCHEMA user_7 RENAME TO user_2")
    as_before(toolkit, before)


def test_a_sequence_in_use_is_not_forgotten_with_the_toolkit(toolkit: Connection, before: dict[str, str]) -> None:
    """While it is to be renamed the toolkit stays, and says so; the rollback, given again, renames it."""
    sequence = "template_tenant.marketplace_job_stats_id_seq"
    with connect(toolkit, autocommit=False) as idle:
        idle.execute(f"SELECT nextval('{sequence}')".encode())
        ok(psql(toolkit, *DOWN))
        with pytest.raises(psycopg.Error, match=f"{sequence} is still to be called vinted_job_stats_id_seq"):
            toolkit.execute("CALL tenancy.refuse_while_needed()")
    ok(psql(toolkit, "-f", DOWNGRADE))
    toolkit.execute("CALL tenancy.refuse_while_needed()")
    as_before(toolkit, before)


def test_a_renamed_tenant_that_is_left_out_keeps_the_toolkit(toolkit: Connection, before: dict[str, str]) -> None:
    """When all others are back, what its rollback needs stays; told to include it, the rollback restores it."""
    toolkit.execute("ALTER SCHEMA user_2 RENAME TO user_7; INSERT INTO tenancy.left_out VALUES ('user_7', 'later')")
    ok(psql(toolkit, *DOWN))
    assert column(toolkit, "SELECT name FROM tenancy.migrations") == []
    with pytest.raises(psycopg.Error, match=r"0020\.marketplace-job-stats in user_7"):
        toolkit.execute("CALL tenancy.refuse_while_needed()")
    toolkit.execute("DELETE FROM tenancy.left_out")
    ok(psql(toolkit, *DOWN))
    toolkit.execute("CALL tenancy.refuse_while_needed(); ALTER SCHEMA user_7 RENAME TO user_2")
    as_before(toolkit, before)


def test_a_namesake_gets_nothing_of_the_dead(toolkit: Connection, before: dict[str, str]) -> None:
    """A tenant that was dropped and made anew by its name is, rolled back, what a clone of the legacy template is."""
    toolkit.execute("DROP SCHEMA user_2 CASCADE")
    clone(toolkit, "user_2", "template_tenant.marketplace_job_stats")
    ok(psql(toolkit, *DOWN))
    (described,) = definitions(toolkit, ["user_2"]).values()
    assert described == before["user_1"].replace("user_1", "user_2")


def test_a_tenant_that_was_moved_here(toolkit: Connection, before: dict[str, str], tmp_path: Path) -> None:
    """Moved by pg_dump it is named by the verification, and refused by the rollback; with its row it comes back."""
    with database(toolkit, f"{toolkit.info.dbname}_there") as there:
        there.execute("CREATE SCHEMA vinted; CREATE TABLE vinted.action_types (id integer PRIMARY KEY)")
        there.execute("INSERT INTO vinted.action_types SELECT generate_series(1, 100)")
        ok(yoyo(there, "apply"))
        sequence = (
            "CREATE SCHEMA template_tenant; CREATE SEQUENCE template_tenant.marketplace_job_stats_id_seq AS integer;"
        )
        ok(psql(there, stdin=sequence + pg_dump(toolkit, "--schema=user_2")))
        named = "user_2: was migrated elsewhere"
        assert named in psql(there, "-f", VERIFY).stderr
        ok(psql(there, "-f", UNEXACT))
        refused = psql(there, "-f", DOWNGRADE)
        assert "user_2: tenancy.undo does not say what user_2.marketplace_job_stats was" in refused.stderr
        (command,) = blocks("docs/runbook.md", "sh", "PGSERVICE=there")
        assert bash(command, services(tmp_path / "services", here=toolkit, there=there)) == "COPY 1\n"
        ok(psql(there, "-f", DOWNGRADE))
        assert definitions(there, ["user_2"])["user_2"] == before["user_2"]


def test_a_tenant_that_was_restored_in_its_place(toolkit: Connection, before: dict[str, str]) -> None:
    """From a backup of after, it is named by the verification, and comes back if its row is said to be its own."""
    dump = pg_dump(toolkit, "--schema=user_2")
    toolkit.execute("DROP SCHEMA user_2 CASCADE")
    ok(psql(toolkit, stdin=dump))
    assert "user_2: was migrated elsewhere" in psql(toolkit, "-f", VERIFY).stderr
    ok(psql(toolkit, "-c", "CALL job_stats.sweep()"))
    (command,) = blocks("docs/runbook.md", "sh", "UPDATE tenancy.undo")
    assert bash(command, libpq_env(toolkit)) == "UPDATE 1\n"
    ok(psql(toolkit, "-f", VERIFY))
    ok(psql(toolkit, *DOWN))
    as_before(toolkit, before)


def test_a_tenant_from_which_nothing_is_taken(toolkit: Connection) -> None:
    """Without keys, and without a name of the table's, it is known not to come from elsewhere, and is rolled back."""
    toolkit.execute("CREATE SCHEMA user_bare; CREATE TABLE user_bare.vinted_job_stats AS TABLE user_1.vinted_job_stats")
    described = schema_dump(toolkit, "user_bare")
    verified = psql(toolkit, *UP).stderr  # which has a column in it that may be NULL
    assert "user_bare: " in verified
    assert "migrated elsewhere" not in verified
    ok(psql(toolkit, *DOWN))
    assert schema_dump(toolkit, "user_bare") == described


def test_a_column_that_a_later_migration_makes_elsewhere(toolkit: Connection) -> None:
    """A tenant that had one of that name before the change keeps it, whatever a rollback takes away with its own."""
    toolkit.execute("ALTER TABLE user_2.vinted_job_stats ADD last_job_at timestamptz DEFAULT '2020-01-01'")
    ok(psql(toolkit, *UP))
    toolkit.execute(
        "INSERT INTO tenancy.effects VALUES ('0024', 'marketplace_job_stats', %s, '{}')",
        [["column last_job_at timestamp with time zone"]],
    )
    toolkit.execute("ALTER TABLE user_1.marketplace_job_stats ADD last_job_at timestamptz")
    ok(psql(toolkit, *DOWN))
    having = "SELECT attrelid::regclass::text FROM pg_attribute WHERE attname = 'last_job_at'"
    assert column(toolkit, having) == ["user_2.vinted_job_stats"]


def test_a_tenant_that_was_restored_from_a_backup_of_before(toolkit: Connection, tmp_path: Path) -> None:
    """A clone's ids are the template's sequence's, which has another name since: the runbook's command says it."""
    described = definitions(toolkit, ["user_2"])
    (tmp_path / "user_2.sql").write_text(pg_dump(toolkit, "--schema=user_2"))
    ok(psql(toolkit, *UP))
    toolkit.execute("DROP SCHEMA user_2 CASCADE")
    (command,) = blocks("docs/runbook.md", "sh", "user_2.sql")
    bash(command, libpq_env(toolkit), tmp_path)
    ok(psql(toolkit, "-c", "CALL job_stats.sweep()"))
    ok(psql(toolkit, "-f", VERIFY))
    ok(psql(toolkit, *DOWN))
    assert definitions(toolkit, ["user_2"]) == described


def test_a_tenant_made_of_a_dump_of_the_template(migrated: Connection) -> None:
    """It looks migrated, and nothing is kept of it: named by the verification; the template's row mends it."""
    dump = pg_dump(migrated, "--schema=template_tenant").replace("template_tenant", "user_7")
    ok(psql(migrated, stdin=dump))
    assert "user_7: was migrated elsewhere" in psql(migrated, "-f", VERIFY).stderr
    (command,) = blocks("docs/runbook.md", "sh", "INSERT INTO tenancy.undo")
    bash(command, libpq_env(migrated))
    migrated.execute("CALL job_stats.create_legacy_view('user_7.marketplace_job_stats')")
    ok(psql(migrated, "-f", VERIFY))
    ok(psql(migrated, *DOWN))
    definition = schema_dump(migrated, "template_tenant").replace("template_tenant", "user_7")
    assert schema_dump(migrated, "user_7") == definition


def test_a_restored_database(toolkit: Connection, before: dict[str, str]) -> None:
    """Dumped and restored as a whole, after a rename, it is rolled back as if nothing had happened."""
    toolkit.execute("ALTER SCHEMA user_2 RENAME TO user_2_acme")
    with database(toolkit, f"{toolkit.info.dbname}_restored") as restored:
        ok(psql(restored, stdin=pg_dump(toolkit)))
        restored.execute("ALTER SCHEMA user_2_acme RENAME TO user_2")
        ok(psql(restored, *DOWN))
        as_before(restored, before)


def keep_of_the_dead(conn: Connection, table: str, columns: str) -> None:
    """Fill a table of state as dropped tables leave it: a row for each oid that a database restored next will use."""
    conn.execute("CREATE TABLE public.newest ()")
    (newest,) = column(conn, "SELECT 'public.newest'::regclass::oid::bigint")
    conn.execute("DROP TABLE public.newest")
    conn.execute(f"INSERT INTO {table} SELECT {columns} FROM generate_series({newest}, {newest + 9999}) AS o".encode())


def test_the_dead_of_a_restored_database(toolkit: Connection, before: dict[str, str]) -> None:
    """pg_dump writes what is kept of dropped tables as numbers, which are oids of others there: it is nobody's."""
    toolkit.execute("CALL job_stats.add_tenant('user_new')")
    sequences = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S' ORDER BY 1"
    keep_of_the_dead(
        toolkit,
        "tenancy.undo",
        """
        o::regclass, '0020.marketplace-job-stats',
        'ALTER TABLE marketplace_job_stats ADD CONSTRAINT fk_of_the_dead
            FOREIGN KEY (action_type_id) REFERENCES vinted.action_types;', '', 'user_dead'
        """,
    )
    keep_of_the_dead(toolkit, "tenancy.renames_left", "o::regclass, 'dead_id_seq', 'vinted_job_stats_id_seq'")
    with database(toolkit, f"{toolkit.info.dbname}_restored") as restored:
        ok(psql(restored, stdin=pg_dump(toolkit)))
        hit = "SELECT count(*) > 1 FROM tenancy.undo WHERE target = 'user_2.marketplace_job_stats'::regclass"
        assert column(restored, hit) == [True]
        kept = column(restored, sequences)
        ok(psql(restored, "-f", VERIFY))
        refused = psql(restored, *DOWN)
        assert "user_new: user_new.marketplace_job_stats has no key" in refused.stderr
        assert "1 FAILED" in refused.stderr
        (forget,) = re.findall(r"(DELETE FROM tenancy\.undo WHERE .*)\.\)", refused.stderr)
        restored.execute(forget.encode())
        ok(psql(restored, "-f", DOWNGRADE))
        ok(psql(restored, "-c", "CALL job_stats.verify(expected => 'legacy')"))
        restored.execute("CALL tenancy.refuse_while_needed()")
        as_before(restored, before)
        (new,) = definitions(restored, ["user_new"]).values()
        assert new == before["user_1"].replace("user_1", "user_new")
        renamed = [name.replace("marketplace_job_stats", "vinted_job_stats") for name in kept]
        assert column(restored, sequences) == sorted(renamed)


def test_a_renamed_tenant_among_the_dead(toolkit: Connection, before: dict[str, str]) -> None:
    """Whose schema was renamed is not guessed, where the dead have left something of its oid: a DBA says it."""
    toolkit.execute("ALTER SCHEMA user_2 RENAME TO user_2_acme")
    keep_of_the_dead(toolkit, "tenancy.undo", "o::regclass, '0020.marketplace-job-stats', 'dead', '', 'user_dead'")
    with database(toolkit, f"{toolkit.info.dbname}_restored") as restored:
        ok(psql(restored, stdin=pg_dump(toolkit)))
        refused = psql(restored, *DOWN)
        assert "user_2_acme: tenancy.undo says several things" in refused.stderr
        assert "19 done, 0 done before, 1 FAILED" in refused.stderr
        of_it = "target = 'user_2_acme.marketplace_job_stats'::regclass"
        assert column(restored, f"SELECT schema_name FROM tenancy.undo WHERE {of_it} ORDER BY 1") == [
            "user_2",
            "user_dead",
        ]
        restored.execute(f"DELETE FROM tenancy.undo WHERE {of_it} AND schema_name = 'user_dead'".encode())
        ok(psql(restored, "-f", DOWNGRADE))
        restored.execute("ALTER SCHEMA user_2_acme RENAME TO user_2")
        as_before(restored, before)


def test_archives_of_the_dead(migrated: Connection, tmp_path: Path) -> None:
    """An archive is known in a restored database; what has a dropped one's number there is none, and stays."""
    query = "SELECT id, marketplace, total_jobs FROM user_1.marketplace_job_stats ORDER BY 1"
    insert = "INSERT INTO user_1.marketplace_job_stats (action_type_id, date, marketplace, total_jobs) VALUES"
    migrated.execute(f"{insert} (1, '2026-01-01', 'ebay', 3), (1, '2026-01-01', 'vinted', 4)".encode())
    split = migrated.execute(query.encode()).fetchall()
    ok(psql(migrated, *DOWN))
    keep_of_the_dead(migrated, "job_stats.archives", "o::regclass")
    with database(migrated, f"{migrated.info.dbname}_restored") as restored:
        ok(psql(restored, stdin=pg_dump(migrated)))
        restored.execute("CALL job_stats.forget_deleted('user_1.vinted_job_stats')")
        ok(psql(restored, *UP))
        assert restored.execute(query.encode()).fetchall() == split
        ok(psql(restored, *DOWN))
        (drop_archives,) = blocks("docs/replication.md", "sh", "FROM job_stats.archives")
        relations = "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'v') AND oid >= 16384 ORDER BY 1"
        others = [name for name in column(restored, relations) if name != "user_1.marketplace_job_stats_archive"]
        bash(drop_archives, services(tmp_path / "services", subscriber=restored))
        assert column(restored, relations) == others


@pytest.mark.parametrize(
    "options",
    ["datestyle=SQL,DMY", "intervalstyle=sql_standard", "quote_all_identifiers=on", "standard_conforming_strings=off"],
)
@pytest.mark.parametrize("at", ["up", "down"])
def test_settings_change_no_definition(toolkit: Connection, options: str, at: str) -> None:
    """A partial key with a date, an interval and a backslash in it comes back the same, whatever the settings say."""
    toolkit.execute(
        r"""
        ALTER TABLE user_1.vinted_job_stats ADD COLUMN note text DEFAULT '';
        CREATE UNIQUE INDEX partly ON user_1.vinted_job_stats (action_type_id, date)
        WHERE date >= '2026-02-01' AND note <> 'a\b' AND date + '1 day 02:00'::interval > '2026-02-03 04:05'::timestamp
        """
    )
    before = schema_dump(toolkit, "user_1")
    setting = {"PGOPTIONS": f"-c {options}"}
    ok(psql(toolkit, *UP, env=setting if at == "up" else {}))
    ok(psql(toolkit, *DOWN, env=setting if at == "down" else {}))
    assert schema_dump(toolkit, "user_1") == before


def test_tablespaces(toolkit: Connection) -> None:
    """A key in a tablespace comes back there, and others not, whatever default_tablespace is at the rollback."""
    toolkit.execute("SET allow_in_place_tablespaces = on")
    for name in ["legacy_fast", "legacy_slow"]:
        if not column(toolkit, "SELECT FROM pg_tablespace WHERE spcname = %s", name):
            toolkit.execute(f"CREATE TABLESPACE {name} LOCATION ''".encode())
    toolkit.execute("ALTER INDEX user_1.vinted_job_stats_action_type_id_date_key SET TABLESPACE legacy_fast")
    before = definitions(toolkit, ["user_1", "user_2"])
    ok(psql(toolkit, *UP))
    env = {"PGOPTIONS": "-c default_tablespace=legacy_slow"}
    ok(psql(toolkit, *DOWN, env=env))
    as_before(toolkit, before)
    toolkit.execute("ALTER INDEX user_1.vinted_job_stats_action_type_id_date_key SET TABLESPACE pg_default")


def test_names_are_remembered_and_not_guessed(toolkit: Connection) -> None:
    """What was called after the new table before there was one keeps its name, and options stand as written."""
    toolkit.execute(
        """
        CREATE INDEX marketplace_job_stats_mine ON user_1.vinted_job_stats (total_jobs);
        CREATE INDEX vinted_job_stats_and_marketplace_job_stats ON user_1.vinted_job_stats (failure_count);
        ALTER INDEX user_1.vinted_job_stats_action_type_id_date_key SET (fillfactor = '0x46');
        """
    )
    before = schema_dump(toolkit, "user_1")
    ok(psql(toolkit, *UP))
    ok(psql(toolkit, *DOWN))
    assert schema_dump(toolkit, "user_1") == before


@pytest.mark.parametrize("later", [("-f", DOWNGRADE), ("-c", "CALL job_stats.sweep()")], ids=["rerun", "sweep"])
def test_a_sequence_in_use_is_renamed_later(
    toolkit: Connection, before: dict[str, str], later: tuple[str, str]
) -> None:
    """Drawn from by an open transaction, it is tried again at the end, then named; a rerun or a sweep renames it."""
    sequence = "template_tenant.marketplace_job_stats_id_seq"
    with connect(toolkit, autocommit=False) as writer:
        writer.execute(f"SELECT nextval('{sequence}')".encode())
        ok(psql(toolkit, *DOWN))
        assert states(toolkit)["template_tenant"] == "drifted"
        refused = psql(toolkit, "-f", VERIFY)
        assert "template_tenant: sequence marketplace_job_stats_id_seq is still to be renamed" in refused.stderr
        writer.rollback()
    ok(psql(toolkit, *later))
    ok(psql(toolkit, "-f", VERIFY))
    as_before(toolkit, before)


def test_a_sequence_that_kept_its_name_keeps_it(toolkit: Connection) -> None:
    """In use for the whole upgrade, it is still to be renamed when the rollback comes: then it is to be no more."""
    before = schema_dump(toolkit, "template_tenant")
    with connect(toolkit, autocommit=False) as writer:
        writer.execute("SELECT nextval('template_tenant.vinted_job_stats_id_seq')")
        ok(psql(toolkit, "-f", UPGRADE))
    assert column(toolkit, "SELECT new_name FROM tenancy.renames_left") == ["marketplace_job_stats_id_seq"]
    ok(psql(toolkit, "-f", DOWNGRADE))
    assert column(toolkit, "SELECT new_name FROM tenancy.renames_left") == []
    assert schema_dump(toolkit, "template_tenant") == before


def test_a_sequence_that_is_free_at_the_end_of_the_run(toolkit: Connection) -> None:
    """The template's turn comes first, and by the end of the run the sequence may be free."""
    with (
        connect(toolkit, autocommit=False) as writer,
        connect(toolkit, autocommit=False) as reader,
    ):
        writer.execute("SELECT nextval('template_tenant.vinted_job_stats_id_seq')")
        reader.execute("SELECT FROM user_1.vinted_job_stats")
        with running(psql, toolkit, "-f", UPGRADE) as results:
            while not column(toolkit, "SELECT count(*) > 0 FROM tenancy.journal WHERE schema_name = 'user_1'")[0]:
                toolkit.execute("SELECT pg_sleep(0.01)")
            writer.rollback()
            reader.rollback()
        ok(results[0])
    assert column(toolkit, "SELECT to_regclass('template_tenant.marketplace_job_stats_id_seq') IS NOT NULL") == [True]
    assert column(toolkit, "SELECT count(*) FROM tenancy.renames_left") == [0]


def test_a_sequence_whose_name_is_taken_ends_no_run(toolkit: Connection) -> None:
    """Left because it was in use, and impossible to rename since: the next run does the others, and this is named."""
    sequence = "user_2.vinted_job_stats_id_seq"
    toolkit.execute(f"CREATE SEQUENCE {sequence} OWNED BY user_2.vinted_job_stats.id".encode())
    toolkit.execute("CREATE TABLE user_3.marketplace_job_stats ()")
    with connect(toolkit, autocommit=False) as writer:
        writer.execute(f"SELECT nextval('{sequence}')".encode())
        assert "1 FAILED" in psql(toolkit, "-f", UPGRADE).stderr
    toolkit.execute("CREATE TABLE user_2.marketplace_job_stats_id_seq ()")
    refused = psql(toolkit, "-f", UPGRADE)
    assert "0 done, 19 done before, 1 FAILED" in refused.stderr
    assert "user_3: vinted_job_stats and marketplace_job_stats are both there" in refused.stderr
    toolkit.execute("DROP TABLE user_3.marketplace_job_stats")
    assert "user_2: sequence vinted_job_stats_id_seq is still to be renamed" in psql(toolkit, *UP).stderr
    assert set(states(toolkit).values()) == {"migrated", "drifted", "missing"}


@pytest.mark.parametrize("after", [UP, ()], ids=["child since", "child before"])
def test_children_whose_not_nulls_have_other_names(toolkit: Connection, after: tuple[str, ...]) -> None:
    """PostgreSQL 18 cannot rename such a constraint of the parent; it keeps its name, and the tenant is migrated."""
    ok(psql(toolkit, "-c", "SELECT", *after))
    name = "marketplace_job_stats" if after else "vinted_job_stats"
    toolkit.execute(
        b"""
        CREATE TABLE user_1.kid (id integer NOT NULL, action_type_id integer NOT NULL, date date NOT NULL);
        ALTER TABLE user_1.kid ADD total_jobs integer NOT NULL, ADD success_count integer NOT NULL,
            ADD failure_count integer NOT NULL, ADD avg_duration_ms integer, ADD created_at timestamptz NOT NULL;
        """
    )
    if after:
        toolkit.execute(
            """
            ALTER TABLE user_1.kid ADD marketplace varchar(20) NOT NULL, ADD untimed_jobs integer,
                ADD total_duration_ms bigint, ADD CONSTRAINT ck_marketplace_job_stats_marketplace
                CHECK (marketplace::text IN ('vinted', 'ebay', 'etsy'))
            """
        )
    toolkit.execute(f"ALTER TABLE user_1.kid INHERIT user_1.{name}".encode())
    before = schema_dump(toolkit, "user_1")
    ok(psql(toolkit, *UP))
    ok(psql(toolkit, *DOWN))
    assert after or schema_dump(toolkit, "user_1") == before
    ok(psql(toolkit, "-c", "CALL job_stats.verify(expected => 'legacy')"))


def test_names_of_not_null_that_an_upgraded_server_gave(toolkit: Connection) -> None:
    """PostgreSQL 18 names them after the table, also where pg_upgrade meets a migrated one: they go back with it."""
    if toolkit.info.server_version < 180000:
        pytest.skip("in this PostgreSQL, NOT NULL has no name")
    before = schema_dump(toolkit, "user_1")
    ok(psql(toolkit, *UP))
    toolkit.execute("UPDATE tenancy.undo SET renames = regexp_replace(renames, '[^\\n]*_not_null[^\\n]*', '', 'g')")
    ok(psql(toolkit, *DOWN))
    assert schema_dump(toolkit, "user_1") == before
