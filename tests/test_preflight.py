"""What a tenant has that the change would break, or be broken by: said before, refused by name, or named after."""

from itertools import product

import psycopg
import pytest

from stats_lib import get_stats, update_job_stats
from tests.deploy import bash, libpq_env, psql, schema_dump, yoyo
from tests.tenants import DOWN, UP, UPGRADE, VERIFY, Connection, clone, column, definitions, ok, states
from tests.test_docs import blocks

LEGACY = "user_1.vinted_job_stats"
STATS = "user_1.marketplace_job_stats"

# What is there before, and why its tenant is refused.
REFUSED = {
    "columns of our names": (
        f"ALTER TABLE {LEGACY} ADD untimed_jobs integer, ADD total_duration_ms bigint",
        "column total_duration_ms is the tenant's own",
    ),
    "a column marketplace": (f"ALTER TABLE {LEGACY} ADD marketplace text", "column marketplace is the tenant's own"),
    "no created_at": (f"ALTER TABLE {LEGACY} DROP created_at", "column created_at is missing"),
    "a timestamp for a day": (
        f"ALTER TABLE {LEGACY} ALTER date TYPE timestamp",
        "column date is timestamp without time zone and should be date",
    ),
    "text for a counter": (
        f"ALTER TABLE {LEGACY} ALTER avg_duration_ms TYPE text",
        "column avg_duration_ms is text and should be integer",
    ),
    "a domain": (
        f"CREATE DOMAIN user_1.row_id AS integer; ALTER TABLE {LEGACY} ALTER id TYPE user_1.row_id",
        "column id is user_1.row_id and should be integer",
    ),
    "a second table": (
        "CREATE TABLE user_1.marketplace_job_stats ()",
        "vinted_job_stats and marketplace_job_stats are both there",
    ),
    "a view of the new name": (
        "CREATE VIEW user_1.marketplace_job_stats AS SELECT 1 AS id",
        "vinted_job_stats and marketplace_job_stats are both there",
    ),
    "an archive of somebody else's": (
        "CREATE TABLE user_1.marketplace_job_stats_archive (id integer)",
        "marketplace_job_stats_archive is none that a rollback here has made",
    ),
    "a primary key on action and day": (
        f"""
        ALTER TABLE {LEGACY} DROP CONSTRAINT vinted_job_stats_pkey,
            DROP CONSTRAINT vinted_job_stats_action_type_id_date_key, ADD PRIMARY KEY (date, action_type_id)
        """,
        "make id the primary key",
    ),
    "a partitioned table": (
        f"DROP TABLE {LEGACY}; CREATE TABLE {LEGACY} (LIKE user_2.vinted_job_stats) PARTITION BY RANGE (date)",
        "it is partitioned",
    ),
    "a partition": (
        f"""
        CREATE TABLE public.whole (LIKE {LEGACY}) PARTITION BY RANGE (date);
        ALTER TABLE public.whole ATTACH PARTITION {LEGACY} DEFAULT
        """,
        "it is a partition",
    ),
    "a child of another tenant's table": (
        f"DROP TABLE {LEGACY}; CREATE TABLE {LEGACY} () INHERITS (user_3.vinted_job_stats)",
        "user_1.vinted_job_stats inherits from user_3.vinted_job_stats: ALTER TABLE ... NO INHERIT",
    ),
    "a foreign key to the old key": (
        f"""
        CREATE TABLE user_1.notes (
            a integer, d date, CONSTRAINT fk_notes FOREIGN KEY (a, d) REFERENCES {LEGACY} (action_type_id, date)
        )
        """,
        "foreign key fk_notes of user_1.notes refers to user_1.vinted_job_stats_action_type_id_date_key: drop it",
    ),
}


@pytest.mark.parametrize(("change", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_misfit_is_refused_before_it_is_touched(toolkit: Connection, change: str, reason: str) -> None:
    """The preflight, the rehearsal and the upgrade say the same of it; it is as it was, and the others are done."""
    toolkit.execute(change.encode())
    before = definitions(toolkit, ["user_1"])
    found = column(toolkit, "SELECT finding FROM job_stats.preflight WHERE schema_name = 'user_1' AND kind = 'refused'")
    assert any(reason in finding for finding in found)
    rehearsed = psql(toolkit, "-c", "SET tenancy.dry_run = on", "-f", UPGRADE)
    upgraded = psql(toolkit, *UP)
    for result in [rehearsed, upgraded]:
        assert result.returncode != 0
        assert "user_1: " in result.stderr
        assert reason in result.stderr
        assert f"{2 if 'inherits' in reason else 1} FAILED" in result.stderr
    assert definitions(toolkit, ["user_1"]) == before
    assert states(toolkit)["user_2"] == "migrated"


# What is there before, how the preflight calls it, and how PostgreSQL refuses it in the run.
OBSTACLES = {
    "an index of a new name": (
        f"CREATE INDEX ix_marketplace_job_stats_marketplace_created_at ON {LEGACY} (date)",
        "a relation has a name that is needed, ix_marketplace_job_stats_marketplace_created_at: rename it",
        "already exists",
    ),
    "a sequence of the library's index": (
        "CREATE SEQUENCE user_1.ix_stats_lib_date_marketplace",
        "a relation has a name that is needed, ix_stats_lib_date_marketplace: rename it",
        "already exists",
    ),
    "a check of the new name": (
        f"ALTER TABLE {LEGACY} ADD CONSTRAINT ck_marketplace_job_stats_marketplace CHECK (total_jobs > -9)",
        "a constraint has a name that is needed, ck_marketplace_job_stats_marketplace: rename it",
        "already exists",
    ),
    "a domain of the new name": (
        "CREATE DOMAIN user_1.marketplace_job_stats AS integer",
        "a type has a name that is needed, marketplace_job_stats: rename it",
        "already exists",
    ),
    "a pair of names": (
        f"CREATE INDEX vinted_job_stats_z ON {LEGACY} (date); CREATE INDEX marketplace_job_stats_z ON {LEGACY} (id)",
        "a relation has a name that is needed, marketplace_job_stats_z: rename it",
        "already exists",
    ),
    "a pair of checks": (
        f"ALTER TABLE {LEGACY} ADD CONSTRAINT vinted_job_stats_c CHECK (total_jobs > -9),"
        " ADD CONSTRAINT marketplace_job_stats_c CHECK (total_jobs > -8)",
        "a constraint has a name that is needed, marketplace_job_stats_c: rename it",
        "already exists",
    ),
    "a column of the row's type": (
        f"CREATE TABLE user_1.kept (one {LEGACY})",
        "column one of user_1.kept has its row type: drop it",
        "uses its row type",
    ),
    "a typed table": (
        f"""
        CREATE TYPE user_1.t AS (id integer, action_type_id integer, date date, total_jobs integer,
            success_count integer, failure_count integer, avg_duration_ms integer, created_at timestamptz);
        DROP TABLE {LEGACY};
        CREATE TABLE {LEGACY} OF user_1.t (PRIMARY KEY (id), UNIQUE (action_type_id, date))
        """,
        "it is a typed table: ALTER TABLE ... NOT OF",
        "cannot add column to typed table",
    ),
    "a function that names the old key": (
        f"""
        CREATE FUNCTION user_1.count() RETURNS void BEGIN ATOMIC
            INSERT INTO {LEGACY} (action_type_id, date) VALUES (1, '2020-01-01')
            ON CONFLICT ON CONSTRAINT vinted_job_stats_action_type_id_date_key DO NOTHING;
        END
        """,
        "function user_1.count() names user_1.vinted_job_stats_action_type_id_date_key: drop it",
        "other objects depend on it",
    ),
    "a predicate of an own type": (
        f"""
        CREATE TYPE user_1.kind AS ENUM ('a', 'b');
        ALTER TABLE {LEGACY} ADD kind user_1.kind;
        CREATE UNIQUE INDEX by_kind ON {LEGACY} (action_type_id, date) WHERE kind = 'a'
        """,
        "the predicate of user_1.by_kind has what is not PostgreSQL's own, a constant of no type, or EXTRACT: drop it",
        "the predicate of user_1.by_kind has what is not PostgreSQL's own, a constant of no type, or EXTRACT",
    ),
    "a sequence that is named by a text": (
        f"ALTER TABLE {LEGACY} ALTER id SET DEFAULT"
        " nextval(('template_tenant.vinted_job_stats_id_seq'::text)::regclass)",
        "column id takes its default from a sequence that is named by a text: cast that to regclass",
        "column id takes its default from a sequence that is named by a text",
    ),
}


@pytest.mark.parametrize(("change", "finding", "error"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_postgresql_will_refuse_is_said_before(toolkit: Connection, change: str, finding: str, error: str) -> None:
    """In the preflight, as the run says it later; the tenant can be rolled back, and the others are done."""
    toolkit.execute(change.encode())
    before = definitions(toolkit, ["user_1"])
    found = "SELECT finding FROM job_stats.preflight WHERE schema_name = 'user_1' AND kind = 'refused'"
    assert column(toolkit, found) == [finding]
    assert "user_1: " in (said := psql(toolkit, *UP[:4]).stderr + psql(toolkit, *UP[2:]).stderr)
    assert error in said
    assert states(toolkit)["user_2"] == "migrated"
    ok(psql(toolkit, *DOWN))
    assert definitions(toolkit, ["user_1"]) == before


def test_a_tenant_of_an_owner_who_is_a_stranger(toolkit: Connection) -> None:
    """Whom whoever migrates is no member of, he cannot migrate: said before. A superuser is everybody's."""
    found = "SELECT count(*) FROM job_stats.preflight WHERE finding LIKE 'it belongs to %'"
    assert column(toolkit, found) == [0]
    toolkit.execute("CREATE ROLE legacy_no_member NOLOGIN")
    try:
        toolkit.execute("ALTER FUNCTION job_stats.find OWNER TO legacy_no_member")
        toolkit.execute(
            "GRANT USAGE ON SCHEMA job_stats TO legacy_no_member; GRANT pg_read_all_data TO legacy_no_member"
        )
        assert column(toolkit, found)[0] > 0
    finally:
        toolkit.execute("DROP OWNED BY legacy_no_member CASCADE; DROP ROLE legacy_no_member")


def test_rows_as_no_server_counts_them(toolkit: Connection) -> None:
    """A table's statistics, which PostgreSQL 18 lets its owner write, keep nobody from the preflight."""
    for number in ["1e30", "NaN", "Infinity"]:
        toolkit.execute(
            "UPDATE pg_class SET reltuples = %s::real WHERE oid = 'user_2.vinted_job_stats'::regclass", [number]
        )
        assert column(toolkit, "SELECT count(*) FROM job_stats.preflight WHERE kind = 'slow'") == [1]


def test_keys_that_are_not_plain_are_said_before(toolkit: Connection) -> None:
    """What the new key will not be: deferrable, partial; in a column list that is to have all of the identity's."""
    toolkit.execute(
        f"""
        ALTER TABLE {LEGACY} DROP CONSTRAINT vinted_job_stats_action_type_id_date_key;
        CREATE UNIQUE INDEX part ON {LEGACY} (action_type_id, date) WHERE total_jobs > 0;
        ALTER TABLE {LEGACY} ADD CONSTRAINT late UNIQUE (action_type_id, date) DEFERRABLE;
        ALTER TABLE {LEGACY} ADD CONSTRAINT k UNIQUE (action_type_id, date);
        ALTER TABLE {LEGACY} REPLICA IDENTITY USING INDEX k;
        CREATE PUBLICATION narrow FOR TABLE {LEGACY} (id, action_type_id, date)
        """.encode()
    )
    query = "SELECT finding FROM job_stats.preflight WHERE kind = 'differs' AND finding LIKE '% is %' ORDER BY 1"
    assert column(toolkit, query) == [
        "user_1.k is the replica identity, and publication narrow has a column list: old code's UPDATE would fail, "
        "docs/replication.md",
        "user_1.late is deferrable, and its successor is not",
        "user_1.part is partial, and its successor is not",
    ]


def count_everywhere(conn: Connection) -> None:
    """Count a job of two action types and two marketplaces."""
    for action_type_id, marketplace in product([1, 2], ["vinted", "ebay"]):
        update_job_stats(conn, schema="user_1", action_type_id=action_type_id, marketplace=marketplace, success=True)


# What is there before, and why stats_lib could not count there.
STOPS = {
    "an exclusion constraint": (
        f"""
        ALTER TABLE {LEGACY} DROP CONSTRAINT vinted_job_stats_action_type_id_date_key;
        ALTER TABLE {LEGACY} ADD CONSTRAINT one EXCLUDE USING btree (action_type_id WITH =, date WITH =)
        """,
        "user_1.one admits one marketplace only",
    ),
    "a unique expression": (
        f"CREATE UNIQUE INDEX one ON {LEGACY} ((action_type_id::bigint * 100000 + (date - date '2000-01-01')))",
        "user_1.one admits one marketplace only",
    ),
    "a key with one column more": (
        f"ALTER TABLE {LEGACY} ADD region integer NOT NULL DEFAULT 0, "
        "ADD CONSTRAINT one UNIQUE (action_type_id, date, region)",
        "user_1.one admits one marketplace only",
    ),
    "a column that must be given": (
        f"ALTER TABLE {LEGACY} ADD region integer; UPDATE {LEGACY} SET region = 1; "
        f"ALTER TABLE {LEGACY} ALTER region SET NOT NULL",
        "column region is NOT NULL without a default",
    ),
    "a rule": (
        f"CREATE RULE log AS ON INSERT TO {LEGACY} DO ALSO NOTIFY counted",
        "rule log: PostgreSQL refuses ON CONFLICT where there is one",
    ),
}


@pytest.mark.parametrize(("change", "reason"), STOPS.values(), ids=STOPS)
def test_what_stops_stats_lib_is_said_before_and_after(toolkit: Connection, change: str, reason: str) -> None:
    """It is in the preflight; after the upgrade it is a problem, as eBay's jobs show; mended, the tenant is sound."""
    toolkit.execute(change.encode())
    found = "SELECT finding FROM job_stats.preflight WHERE schema_name = 'user_1' AND kind = 'stops stats_lib'"
    assert [finding.replace("vinted", "x") for finding in column(toolkit, found)] == [reason.replace("vinted", "x")]
    applied = psql(toolkit, *UP)
    assert applied.returncode != 0
    assert f"user_1: {reason}" in applied.stderr
    with pytest.raises(psycopg.Error):
        count_everywhere(toolkit)


def test_what_works_is_accepted(toolkit: Connection) -> None:
    """Wider integers, keys that the id is part of, and keys of the tenant's own that tell marketplaces apart."""
    toolkit.execute(
        f"""
        ALTER TABLE {LEGACY} ALTER id TYPE bigint, ALTER total_jobs TYPE bigint, ALTER success_count TYPE bigint,
            ALTER avg_duration_ms TYPE bigint;
        CREATE UNIQUE INDEX one ON {LEGACY} (date, id);
        CREATE UNIQUE INDEX two ON {LEGACY} ((id + 1))
        """.encode()
    )
    before = schema_dump(toolkit, "user_1")
    ok(psql(toolkit, *UP))
    update_job_stats(toolkit, schema="user_1", action_type_id=77, marketplace="ebay", success=True)
    assert [row.total_jobs for row in get_stats(toolkit, schema="user_1", marketplace="ebay")] == [1]
    toolkit.execute(f"DELETE FROM {STATS} WHERE marketplace = 'ebay'".encode())
    ok(psql(toolkit, *DOWN))
    assert schema_dump(toolkit, "user_1") == before


DIFFERS = """
    CREATE TABLE user_1.hist (LIKE user_1.vinted_job_stats);
    CREATE FUNCTION user_1.keep() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO user_1.hist VALUES (OLD.*); RETURN OLD; END';
    CREATE TRIGGER keep AFTER DELETE ON user_1.vinted_job_stats FOR EACH ROW EXECUTE FUNCTION user_1.keep();
    CREATE FUNCTION user_1.today() RETURNS SETOF user_1.vinted_job_stats LANGUAGE sql
        AS 'SELECT * FROM user_1.vinted_job_stats WHERE date = current_date';
    CREATE VIEW user_1.report AS SELECT date FROM user_1.vinted_job_stats;
    CREATE FUNCTION user_1.jobs() RETURNS bigint
    BEGIN ATOMIC SELECT sum(total_jobs) FROM user_1.vinted_job_stats; END;
    CREATE PUBLICATION daily FOR TABLE user_1.vinted_job_stats (id, date)
"""


def test_what_will_work_differently_is_said_before(toolkit: Connection) -> None:
    """Triggers, functions and views that know the table's rows, and publications: a row each, by tenant."""
    toolkit.execute(DIFFERS)
    query = "SELECT finding FROM job_stats.preflight WHERE schema_name = 'user_1' AND kind = 'differs' ORDER BY 1"
    assert column(toolkit, query) == [
        "function user_1.jobs() will follow the table to its new name, and see every marketplace",
        "function user_1.today() takes or returns rows of it: these will have more columns",
        "publication daily will publish the new name, and its column list lacks marketplace: docs/replication.md",
        "trigger keep will see the new name, and columns that come after the old ones",
        "view user_1.report will follow the table to its new name, and show every marketplace",
    ]
    toolkit.execute("ALTER TABLE user_2.vinted_job_stats ENABLE ROW LEVEL SECURITY")
    toolkit.execute("GRANT SELECT (id) ON user_2.vinted_job_stats TO legacy_owner")
    assert column(toolkit, query.replace("user_1", "user_2")) == [
        "its row-level security would let who may read some columns only read nothing through the view"
    ]
    toolkit.execute("ANALYZE; UPDATE pg_class SET reltuples = 1500000 WHERE oid = 'user_2.vinted_job_stats'::regclass")
    slow = "SELECT finding FROM job_stats.preflight WHERE kind = 'slow'"
    assert column(toolkit, slow) == ["some 1500000 rows: it will be locked for some 4 s"]


def test_what_stands_in_the_way_of_all_is_said_before(toolkit: Connection) -> None:
    """An open public, timeouts of the role, and publications of all tables; a quiet database has nothing to say."""
    query = "SELECT kind, finding FROM job_stats.preflight WHERE schema_name IS NULL ORDER BY finding"
    assert toolkit.execute(query).fetchall() == []
    toolkit.execute("GRANT CREATE ON SCHEMA public TO public; CREATE PUBLICATION everything FOR ALL TABLES")
    toolkit.execute("SET idle_session_timeout = '1h'")
    said = toolkit.execute(query).fetchall()
    assert [kind for kind, _ in said] == ["unsafe", "in the way", "differs"]
    assert [finding.split()[0] for _, finding in said] == ["everybody", "idle_session_timeout", "publication"]


def test_who_cannot_see_transactions_is_told(toolkit: Connection) -> None:
    """A long one would stand in the way: to know, one must see others'."""
    found = "SELECT finding FROM job_stats.preflight WHERE kind = 'in the way'"
    toolkit.execute("CREATE ROLE legacy_blind NOLOGIN")
    try:
        toolkit.execute("ALTER FUNCTION job_stats.find OWNER TO legacy_blind; GRANT pg_read_all_data TO legacy_blind")
        toolkit.execute("GRANT USAGE ON SCHEMA job_stats, tenancy TO legacy_blind")
        toolkit.execute("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA job_stats, tenancy TO legacy_blind")
        assert column(toolkit, found) == [
            "legacy_blind cannot see whether others are in a transaction: GRANT pg_read_all_stats"
        ]
        toolkit.execute("GRANT pg_read_all_stats TO legacy_blind")
        assert column(toolkit, found) == []
    finally:
        toolkit.execute("DROP OWNED BY legacy_blind CASCADE; DROP ROLE legacy_blind")


def test_a_trigger_that_reads_the_view(toolkit: Connection) -> None:
    """A total that is kept by reading vinted_job_stats is kept through fold and unfold: the view is there meanwhile."""
    toolkit.execute(
        """
        CREATE TABLE user_1.total (jobs bigint);
        INSERT INTO user_1.total VALUES (0);
        CREATE FUNCTION user_1.keep_total() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE user_1.total SET jobs = (SELECT sum(total_jobs) FROM user_1.vinted_job_stats);
            RETURN NULL;
        END
        $$;
        CREATE TRIGGER keep_total AFTER INSERT OR UPDATE OR DELETE ON user_1.vinted_job_stats
            FOR EACH STATEMENT EXECUTE FUNCTION user_1.keep_total()
        """
    )
    ok(psql(toolkit, *UP))
    update_job_stats(toolkit, schema="user_1", action_type_id=1, marketplace="ebay", success=True)
    ok(psql(toolkit, *DOWN))
    ok(psql(toolkit, *UP))
    vinted = f"SELECT sum(total_jobs) FROM {STATS} WHERE marketplace = 'vinted'"
    assert column(toolkit, "SELECT jobs FROM user_1.total") == column(toolkit, vinted)


def test_a_foreign_key_to_vinted_that_was_kept_is_named(migrated: Connection) -> None:
    """A tenant migrated by hand, which refuses eBay's action types, is no sound one."""
    migrated.execute(
        f"ALTER TABLE {STATS} ADD CONSTRAINT kept FOREIGN KEY (action_type_id) REFERENCES vinted.action_types"
    )
    assert "user_1: " in (stderr := psql(migrated, "-f", VERIFY).stderr)
    assert "foreign key kept admits Vinted's action types only" in stderr


def test_tables_only_in_schemas_that_are_no_tenants(empty: Connection) -> None:
    """Such schemas are named, by the upgrade and by the verification; an empty database is migrated."""
    ok(yoyo(empty, "apply", "--revision", "0019"))
    for schema in ["tenant_1", '"User_5"']:
        empty.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.vinted_job_stats (id integer)".encode())
    for result in [yoyo(empty, "apply"), psql(empty, "-f", UPGRADE), psql(empty, "-f", VERIFY)]:
        assert result.returncode != 0
        assert 'no tenants: "User_5", tenant_1' in result.stderr
    assert column(empty, "SELECT finding FROM job_stats.preflight WHERE kind = 'refused'") == [
        'no tenant has the table, but schemas have that are no tenants: "User_5", tenant_1'
    ]
    empty.execute('DROP SCHEMA "User_5", tenant_1 CASCADE')
    ok(yoyo(empty, "apply"))


def test_whose_code_has_failed_is_said(legacy: Connection) -> None:
    """An event trigger that does not find its own table is named in the tenant's problem."""
    ok(yoyo(legacy, "apply", "--revision", "0019"))
    legacy.execute(
        """
        CREATE FUNCTION public.log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO ddl_log VALUES (tg_tag); END';
        CREATE EVENT TRIGGER log_ddl ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION public.log_ddl()
        """
    )
    failed = yoyo(legacy, "apply")
    assert 'template_tenant: relation "ddl_log" does not exist (in PL/pgSQL function public.log_ddl()' in failed.stderr


def test_a_straggler_that_misfits_is_named_by_the_sweep(migrated: Connection) -> None:
    """The sweep refuses as the upgrade does."""
    clone(migrated, "user_old", "user_1.marketplace_job_stats")
    migrated.execute(
        "DROP SCHEMA user_old CASCADE; CREATE SCHEMA user_old; "
        "CREATE TABLE user_old.vinted_job_stats (id integer, marketplace text)"
    )
    swept = psql(migrated, "-c", "CALL job_stats.sweep()")
    assert swept.returncode != 0
    assert "user_old: " in swept.stderr


def test_empty_tables_beside_the_legacy_ones(legacy: Connection) -> None:
    """The runbook's one command drops those that nothing was ever written to, and no other; who fails stops nobody."""
    ok(yoyo(legacy, "apply", "--revision", "0019", env={"PGOPTIONS": "-c job_stats.verify=off"}))
    for tenant in ["user_1", "user_2", "user_3"]:
        legacy.execute(f"CREATE TABLE {tenant}.marketplace_job_stats (id integer)".encode())
    legacy.execute("CREATE VIEW user_1.depends AS TABLE user_1.marketplace_job_stats")
    legacy.execute("INSERT INTO user_3.marketplace_job_stats VALUES (1)")
    (command,) = blocks("docs/runbook.md", "sh", "DROP TABLE %1$s")
    bash(command, libpq_env(legacy))
    failed = yoyo(legacy, "apply")
    assert "2 FAILED" in failed.stderr
    assert "user_1: vinted_job_stats and marketplace_job_stats are both there" in failed.stderr
    assert "user_3: vinted_job_stats and marketplace_job_stats are both there" in failed.stderr


def test_jobs_beside_the_legacy_ones(legacy: Connection) -> None:
    """The runbook's statement adds the jobs of both tables up, and their averages by their weight."""
    legacy.execute("ALTER SCHEMA user_1 RENAME TO user_7")
    legacy.execute("CREATE TABLE user_7.marketplace_job_stats (LIKE user_7.vinted_job_stats INCLUDING ALL)")
    legacy.execute("INSERT INTO user_7.marketplace_job_stats TABLE user_7.vinted_job_stats")
    legacy.execute("UPDATE user_7.marketplace_job_stats SET avg_duration_ms = avg_duration_ms + 10")
    total = "SELECT sum(total_jobs) FROM user_7.vinted_job_stats"
    averages = "SELECT avg_duration_ms FROM user_7.vinted_job_stats WHERE total_jobs > 0 ORDER BY id"
    (before,), averages_before = column(legacy, total), column(legacy, averages)
    (statement,) = blocks("docs/runbook.md", "sql", "excluded.total_jobs")
    legacy.execute(statement.encode())
    assert column(legacy, total) == [2 * before]
    assert column(legacy, averages) == [each and each + 5 for each in averages_before]
