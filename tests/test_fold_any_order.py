"""Whatever is counted, by new code or old, and however often the database goes up and down: no job is lost or moved.

hypothesis makes up the sequences, the same ones in every run, and shortens one that fails to its cause.
"""

import datetime
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql
from yoyo.migrations import read_sql_migration

from stats_lib import Marketplace, update_job_stats
from tests.deploy import yoyo
from tests.tenants import DOWNGRADE, EXACT, UPGRADE, Connection, ok

TENANTS = st.sampled_from(["user_1", "user_2"])
ACTIONS = st.sampled_from([1, 2])
DAY = datetime.date(2026, 1, 1)
MILLISECONDS = st.integers(1_000, 9_000)

Group = tuple[str, int]  # tenant, action type
Row = tuple[int, int, int | None]  # successes, failures, average


class Platform(RuleBasedStateMachine):
    """Two tenants: a database, and what is expected to be in it."""

    conn: Connection  # to a database that has the toolkit and no tenant

    def __init__(self) -> None:
        super().__init__()
        self.migrated = False
        self.jobs: Counter[tuple[Group, str, bool]] = Counter()  # by marketplace and success
        self.ids: dict[tuple[Group, str], int] = {}  # of the rows of new code

    @initialize()
    def create_tenants(self) -> None:
        """An original, and one with more columns whose ids are always generated."""
        self.conn.execute(
            """
            DROP SCHEMA IF EXISTS user_1, user_2 CASCADE;
            CREATE SCHEMA user_1;
            CREATE TABLE user_1.vinted_job_stats (
                id serial PRIMARY KEY,
                action_type_id integer NOT NULL,
                date date NOT NULL,
                total_jobs integer NOT NULL DEFAULT 0,
                success_count integer NOT NULL DEFAULT 0,
                failure_count integer NOT NULL DEFAULT 0,
                avg_duration_ms integer,
                created_at timestamptz NOT NULL DEFAULT now(),
                UNIQUE (action_type_id, date)
            );
            CREATE SCHEMA user_2;
            CREATE TABLE user_2.vinted_job_stats (
                LIKE user_1.vinted_job_stats INCLUDING ALL,
                note text NOT NULL DEFAULT '',
                percent integer GENERATED ALWAYS AS (100 * success_count / nullif(total_jobs, 0)) STORED,
                CHECK (total_jobs = success_count + failure_count)
            );
            ALTER TABLE user_2.vinted_job_stats ALTER id DROP DEFAULT, ALTER id ADD GENERATED ALWAYS AS IDENTITY;
            """
        )

    @precondition(lambda self: self.migrated)
    @rule(
        tenant=TENANTS,
        action=ACTIONS,
        jobs=st.lists(st.tuples(st.sampled_from(Marketplace), st.booleans(), MILLISECONDS), min_size=1, max_size=8),
    )
    def new_code_counts(self, tenant: str, action: int, jobs: list[tuple[Marketplace, bool, int]]) -> None:
        """Count jobs with the library."""
        for marketplace, success, duration in jobs:
            update_job_stats(
                self.conn,
                schema=tenant,
                action_type_id=action,
                marketplace=marketplace,
                success=success,
                duration=datetime.timedelta(milliseconds=duration),
                date=DAY,
            )
            self.jobs[(tenant, action), marketplace, success] += 1

    @rule(tenant=TENANTS, action=ACTIONS, success=st.booleans(), duration=MILLISECONDS)
    def old_code_counts(self, tenant: str, action: int, success: bool, duration: int) -> None:
        """Count a job through `vinted_job_stats`, whatever that is: update, or else insert."""
        params = {"action": action, "day": DAY, "yes": int(success), "no": int(not success), "ms": duration}
        update = """
            UPDATE {} SET
                total_jobs = total_jobs + 1,
                success_count = success_count + %(yes)s,
                failure_count = failure_count + %(no)s,
                avg_duration_ms = round((avg_duration_ms::numeric * total_jobs + %(ms)s) / (total_jobs + 1))
            WHERE action_type_id = %(action)s AND date = %(day)s
        """
        insert = """
            INSERT INTO {} (action_type_id, date, total_jobs, success_count, failure_count, avg_duration_ms)
            VALUES (%(action)s, %(day)s, 1, %(yes)s, %(no)s, %(ms)s)
        """
        table = sql.Identifier(tenant, "vinted_job_stats")
        if self.conn.execute(sql.SQL(update).format(table), params).rowcount == 0:
            self.conn.execute(sql.SQL(insert).format(table), params)
        self.jobs[(tenant, action), Marketplace.VINTED, success] += 1

    @rule()
    def migrate(self) -> None:
        """Upgrade all tenants, or downgrade them, statement by statement as yoyo does."""
        before = self.rows()
        if self.migrated:
            self.ids = self.ids_of_other_marketplaces()
        for file in [DOWNGRADE] if self.migrated else [UPGRADE, EXACT]:
            for statement in read_sql_migration(file)[2]:
                self.conn.execute(statement)
        self.migrated = not self.migrated

        if self.migrated:
            assert self.ids_of_other_marketplaces() == self.ids
        # Folding rounds a row's average, to within 1/2 ms. Unfolding restores what was folded, and credits total
        # time less total time to Vinted: off by the 1/2 ms of that rounding for each job folded, by 1/2 ms for each job
        # credited, and by 1/2 ms for each of Vinted's where both are merged. Together that is at most 1 ms a job.
        after = self.rows()
        for group in before | after:
            off = mean_duration(before[group]) - mean_duration(after[group])
            assert abs(off) <= (1 if self.migrated else 0.5) + 1e-6

    def rows(self) -> dict[Group, dict[str, Row]]:
        """Of each group, the row of each marketplace; all is Vinted's in a legacy tenant."""
        table = "marketplace_job_stats" if self.migrated else "vinted_job_stats"
        marketplace = "marketplace" if self.migrated else "'vinted'"
        found: dict[Group, dict[str, Row]] = {}
        for tenant in ["user_1", "user_2"]:
            query = f"""
                SELECT action_type_id, {marketplace}, total_jobs, success_count, failure_count, avg_duration_ms
                FROM {tenant}.{table}
            """
            for action, of, total, success, failure, average in self.conn.execute(query.encode()):
                assert total == success + failure
                found.setdefault((tenant, action), {})[of] = success, failure, average
        return found

    def ids_of_other_marketplaces(self) -> dict[tuple[Group, str], int]:
        """The ids of eBay's and Etsy's rows."""
        ids = {}
        for tenant in ["user_1", "user_2"]:
            query = f"""
                SELECT action_type_id, marketplace, id FROM {tenant}.marketplace_job_stats
                WHERE marketplace <> 'vinted'
            """
            for action, marketplace, key in self.conn.execute(query.encode()):
                ids[(tenant, action), marketplace] = key
        return ids

    @invariant()
    def every_job_is_where_it_was_counted(self) -> None:
        """In a migrated tenant on its marketplace, in a legacy one in the only row of its action type."""
        expected: Counter[Any] = Counter()
        for (group, marketplace, success), jobs in self.jobs.items():
            expected[group, marketplace if self.migrated else "vinted", success] += jobs
        found: Counter[Any] = Counter()
        for group, by_marketplace in self.rows().items():
            for marketplace, (successes, failures, _) in by_marketplace.items():
                found[group, marketplace, True] += successes
                found[group, marketplace, False] += failures
        assert +found == +expected


def mean_duration(rows: dict[str, Row]) -> float:
    """Of all jobs of a group."""
    return sum((s + f) * (average or 0) for s, f, average in rows.values()) / sum(s + f for s, f, _ in rows.values())


def test_no_job_is_lost_or_moved_in_any_order(empty: Connection) -> None:
    """Totals match after every step, marketplaces after every upgrade, and averages to within the rounding."""
    ok(yoyo(empty, "apply", "--revision", "0019"))
    Platform.conn = empty
    run_state_machine_as_test(
        Platform,
        settings=settings(
            max_examples=30,
            stateful_step_count=20,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
