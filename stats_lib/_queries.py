"""Arguments in, statement and parameters out: no I/O, so whatever executes them shares this."""

import datetime
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.resources import files
from typing import Any

from psycopg import sql
from psycopg.types.numeric import Int4, Int8

from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary

MIN_ACTION_TYPE_ID, MAX_ACTION_TYPE_ID = -(2**31), 2**31 - 1  # what the column, an integer, can hold
MAX_DAYS = 1_000_000  # within what PostgreSQL can subtract from today
MAX_DURATION = datetime.timedelta(milliseconds=2**32)  # of 2^31 - 1 jobs, as many as a row counts, the sum is a bigint
MAX_SCHEMA_BYTES = 63  # a longer name would be truncated by PostgreSQL, perhaps to another tenant's

_NO_TIME, _MILLISECOND = datetime.timedelta(0), datetime.timedelta(milliseconds=1)
# What is read, too: as bytes if the session's client_encoding is SQL_ASCII.
_STORED = {name: member for member in Marketplace for name in (member.value, member.value.encode())}
_TEXT = re.compile(r"[^\0\ud800-\udfff]+")  # UTF-8 has no surrogates


def _statement(name: str) -> Callable[[str], sql.SQL]:
    """Read a file, with add_to_row.sql in place of {job_added} and {excluded_added}; the result puts in {table}.

    Without comments and indentation, since psycopg parses what is longer than 4096 bytes anew at every call. Composing
    takes longer than all else that a call does here, so it is done once for a schema: for the last 128, as many as
    psycopg keeps parsed.
    """
    text, add = (files(__package__).joinpath(file).read_text("utf-8") for file in (name, "add_to_row.sql"))
    for jobs in ("job", "excluded"):
        text = text.replace(f"{{{jobs}_added}}", add.replace("{jobs}", jobs))
    text = re.sub(r"(\s|--.*)+", " ", text).replace("( ", "(").replace(" )", ")")
    statement = sql.SQL(text.strip())

    @lru_cache(maxsize=128)
    def in_schema(schema: str) -> sql.SQL:
        name = schema.replace("%", "%%")  # psycopg looks for %(placeholders) later
        return sql.SQL(statement.format(table=sql.Identifier(name, "marketplace_job_stats")).as_string(None))

    return in_schema


_UPDATE_JOB_STATS = _statement("update_job_stats.sql")
_INSERT_MISSING_ROWS = _statement("insert_missing_rows.sql")
_UPDATE_JOB_STATS_BATCH = _statement("update_job_stats_batch.sql")
_GET_STATS = _statement("get_stats.sql")
_GET_SUMMARY = _statement("get_summary.sql")


def update_job_stats(
    *,
    schema: str,
    action_type_id: int,
    marketplace: Marketplace | str,
    success: bool,
    duration: datetime.timedelta | None,
    date: datetime.date | None,
) -> tuple[sql.SQL, dict[str, Any]]:
    """Check the arguments of `stats_lib.update_job_stats`; return its statement and parameters, or raise ValueError."""
    return _UPDATE_JOB_STATS(_schema(schema)), _job(action_type_id, marketplace, success, duration, date)


def update_job_stats_batch(*, schema: str, outcomes: Iterable[JobOutcome]) -> list[tuple[sql.SQL, dict[str, Any]]]:
    """Check the arguments of `stats_lib.update_job_stats_batch`; return its statements, in order, or raise ValueError.

    Outcomes are summed up here, so that one pair of statements takes any number of them. None as the date makes a sum
    of its own, which the database, knowing its clock, adds to that day's.
    """
    _schema(schema)
    sums: dict[tuple[int, str, datetime.date | None], list[int]] = {}
    for index, outcome in enumerate(outcomes):
        try:
            if not isinstance(outcome, JobOutcome):
                raise _refusal("outcome", outcome, "a JobOutcome")
            job = _job(outcome.action_type_id, outcome.marketplace, outcome.success, outcome.duration, outcome.date)
        except ValueError as refusal:
            raise ValueError(f"outcomes[{index}]: {refusal}") from None
        of_key = sums.setdefault((int(job["action_type_id"]), job["marketplace"], job["date"]), [0, 0, 0, 0])
        of_key[0] += job["success"]
        of_key[1] += not job["success"]
        of_key[2] += job["duration_ms"] is None
        of_key[3] += job["duration_ms"] or 0
    if not sums:
        return []
    names = "action_type_ids", "marketplaces", "dates", "successes", "failures", "untimed_jobs", "total_durations_ms"
    columns = zip(*((*key, *of_key) for key, of_key in sums.items()), strict=True)
    params = {name: list(column) for name, column in zip(names, columns, strict=True)}
    return [(statement(schema), params) for statement in (_INSERT_MISSING_ROWS, _UPDATE_JOB_STATS_BATCH)]


def get_stats(
    *, schema: str, marketplace: Marketplace | str | None, action_type_id: int | None, days: int
) -> tuple[sql.SQL, dict[str, Any]]:
    """Check the arguments of `stats_lib.get_stats`; return its statement and parameters, or raise ValueError."""
    only = None if action_type_id is None else _action_type_id(action_type_id)
    return _GET_STATS(_schema(schema)), {
        "marketplaces": list(Marketplace) if marketplace is None else [_marketplace(marketplace)],
        "first_action_type_id": Int4(MIN_ACTION_TYPE_ID) if only is None else only,
        "last_action_type_id": Int4(MAX_ACTION_TYPE_ID) if only is None else only,
        "days": _days(days),
    }


def get_summary(*, schema: str, days: int) -> tuple[sql.SQL, dict[str, Any]]:
    """Check the arguments of `stats_lib.get_summary`; return its statement and parameters, or raise ValueError."""
    return _GET_SUMMARY(_schema(schema)), {"marketplaces": list(Marketplace), "days": _days(days)}


def job_stats(id_: int, action_type_id: int, marketplace: str | bytes, *others: Any) -> JobStats:
    """Make a `JobStats` of a row of `get_stats.sql`, whose columns have the order of its fields."""
    return JobStats(id_, action_type_id, _STORED[marketplace], *others)


def marketplace_summary(marketplace: str | bytes, *others: Any) -> MarketplaceSummary:
    """Make a `MarketplaceSummary` of a row of `get_summary.sql`, whose columns have the order of its fields."""
    return MarketplaceSummary(_STORED[marketplace], *others)


def _job(
    action_type_id: int,
    marketplace: Marketplace | str,
    success: bool,
    duration: datetime.timedelta | None,
    date: datetime.date | None,
) -> dict[str, Any]:
    if not isinstance(success, bool):
        raise _refusal("success", success, "True or False")
    if date is not None and (not isinstance(date, datetime.date) or isinstance(date, datetime.datetime)):
        raise _refusal("date", date, "a datetime.date without a time, or None for today in UTC")
    return {
        "action_type_id": _action_type_id(action_type_id),
        "marketplace": _marketplace(marketplace),
        "success": success,
        "duration_ms": None if duration is None else _milliseconds(duration),
        "date": date,
    }


def _schema(schema: str) -> str:
    if not isinstance(schema, str) or not _TEXT.fullmatch(schema) or len(schema.encode()) > MAX_SCHEMA_BYTES:
        raise _refusal("schema", schema, f"a name of 1 to {MAX_SCHEMA_BYTES} bytes in UTF-8, none of them NUL")
    return schema


def _marketplace(marketplace: str) -> Marketplace:
    if not isinstance(marketplace, str) or marketplace not in _STORED:
        raise _refusal("marketplace", marketplace, " or ".join(repr(m.value) for m in Marketplace))
    return _STORED[marketplace]


def _action_type_id(action_type_id: int) -> Int4:
    return _integer("action_type_id", action_type_id, MIN_ACTION_TYPE_ID, MAX_ACTION_TYPE_ID)


def _days(days: int) -> Int4:
    return _integer("days", days, 1, MAX_DAYS)


def _milliseconds(duration: datetime.timedelta) -> Int8:
    if not isinstance(duration, datetime.timedelta) or not _NO_TIME <= duration <= MAX_DURATION:
        raise _refusal("duration", duration, f"a datetime.timedelta from 0 to {MAX_DURATION}, or None")
    return Int8(round(duration / _MILLISECOND))


# Int4, Int8: psycopg would send a smaller type for a smaller value, and prepare the statement once more for each.


def _integer(name: str, value: int, low: int, high: int) -> Int4:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _refusal(name, value, f"an integer from {low} to {high}")
    return Int4(value)


def _refusal(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{name} must be {allowed}; got {value!r}")
