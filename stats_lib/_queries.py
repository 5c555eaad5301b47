"""Arguments in, statement and parameters out: no I/O, so whatever executes them shares this.

A parameter is a plain str or None, for the statement to cast: so it does not matter what the application has told
psycopg to make of a list, an Enum, a bool or a date.
"""

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields, make_dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, TypeVar

from psycopg import sql
from psycopg.adapt import AdaptersMap
from psycopg.postgres import types
from psycopg.rows import BaseRowFactory
from psycopg.types.datetime import DateBinaryLoader, TimestamptzBinaryLoader
from psycopg.types.none import NoneDumper
from psycopg.types.numeric import Int8BinaryLoader
from psycopg.types.string import StrDumperUnknown, TextBinaryLoader, TextLoader

from stats_lib._types import JobOutcome, JobStats, Marketplace, MarketplaceSummary, PlatformSummary

MIN_ACTION_TYPE_ID, MAX_ACTION_TYPE_ID = -(2**31), 2**31 - 1  # what the column, an integer, can hold
MAX_DAYS = 1_000_000  # within what PostgreSQL can subtract from any day of Python's
MAX_MILLISECONDS = 2**32  # of 2^31 - 1 jobs, as many as a row counts, the sum is a bigint
MAX_SCHEMA_BYTES = 63  # a longer name would be truncated by PostgreSQL, perhaps to another tenant's

_MILLISECOND = datetime.timedelta(milliseconds=1)
# What a value of a derived class is, however that compares, hashes or divides: this is checked, and sent.
_plain_str, _plain_int, _divided = str.__str__, int.__int__, datetime.timedelta.__truediv__
_MEMBERS = {member.value: member for member in Marketplace}
_READ_AS = _MEMBERS | {name.encode(): member for name, member in _MEMBERS.items()}  # bytes if the encoding is SQL_ASCII
_TEXT = re.compile(r"[^\0\ud800-\udfff]+")  # UTF-8 has no surrogates

Query = bytes | sql.SQL
Params = Sequence[str | None]

# All that the library's cursors know of Python's and PostgreSQL's types, in place of what the connection knows.
ADAPTERS = AdaptersMap()
ADAPTERS.register_dumper(str, StrDumperUnknown)
ADAPTERS.register_dumper(type(None), NoneDumper)
ADAPTERS.register_loader(0, TextLoader)  # for all others: psycopg wants one
ADAPTERS.register_loader(types["int8"].oid, Int8BinaryLoader)
ADAPTERS.register_loader(types["text"].oid, TextBinaryLoader)
ADAPTERS.register_loader(types["date"].oid, DateBinaryLoader)
ADAPTERS.register_loader(types["timestamptz"].oid, TimestamptzBinaryLoader)


def _text(name: str, **parts: str) -> str:
    """A file, without comments and indentation, with `parts` put in."""
    text = files(__package__).joinpath(f"{name}.sql").read_text("utf-8")
    text = re.sub(r"(\s|--.*)+", " ", text).replace("( ", "(").replace(" )", ")").strip()
    for part, replacement in parts.items():
        text = text.replace(f"{{{part}}}", replacement)
    return text


def _numbered(text: str, names: Sequence[str]) -> str:
    """The same, with its %(parameters)s numbered in the order of `names`, as PostgreSQL has them."""
    return re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", text)


def _in_schema(*texts: str) -> Callable[[str], tuple[Query, ...]]:
    """The statements for a schema, whose table it puts in; it keeps those of the last 128.

    As bytes, if any client_encoding gives the same.
    """

    @lru_cache(maxsize=128)
    def in_schema(schema: str) -> tuple[Query, ...]:
        table = sql.Identifier(schema, "marketplace_job_stats").as_string(None)
        made = [text.replace("{table}", table) for text in texts]
        return tuple(text.encode() if text.isascii() else sql.SQL(text) for text in made)

    return in_schema


_KEY_AND_SUMS = (
    "action_type_id",
    "marketplace",
    "date",
    "total_jobs",
    "success_count",
    "timed_jobs",
    "total_duration_ms",
)
_NOTHING = (None, None, None, "0", "0", "0", "0")
_IS_BELIEVED = f"({_text('is_believed').removeprefix('SELECT ')})"
_DURATIONS = _text("durations", is_believed=_IS_BELIEVED)
_ADDED = {f"{jobs}_added": _text("add_to_row", jobs=jobs, durations=_DURATIONS) for jobs in ("job", "excluded")}
_UPDATE_JOB_STATS = _in_schema(
    _numbered(_text("update_job_stats", is_believed=_IS_BELIEVED), _KEY_AND_SUMS),
    _numbered(_text("upsert_job_stats", **_ADDED), _KEY_AND_SUMS),
)
_READ = "days", "until"
_OF_MARKETPLACE = "stats.marketplace::pg_catalog.text = %(marketplace)s::pg_catalog.text"
_OF_ACTION_TYPE = "stats.action_type_id = %(action_type_id)s::integer"
_OF_ANY = f"stats.marketplace::pg_catalog.text IN ({', '.join(map(repr, map(str, Marketplace)))})"
_READERS = {  # in the order of _read(); before PostgreSQL 18 no scan skips what the unique key has between the two
    (): "true",
    ("marketplace",): _OF_MARKETPLACE,
    ("action_type_id",): f"{_OF_ACTION_TYPE} AND {_OF_ANY}",
    ("marketplace", "action_type_id"): f"{_OF_MARKETPLACE} AND {_OF_ACTION_TYPE}",
}
_GET_STATS, _GET_SUMMARY = (
    _in_schema(
        *(
            _numbered(_text(name, conditions=conditions, durations=_DURATIONS), (*_READ, *given))
            for given, conditions in _READERS.items()
        )
    )
    for name in ("get_stats", "get_summary")
)
_GET_PLATFORM_SUMMARY = _numbered(_text("get_platform_summary"), _READ).encode()


def update_job_stats(
    *,
    schema: str,
    action_type_id: int,
    marketplace: Marketplace | str,
    success: bool,
    duration: datetime.timedelta | None,
    date: datetime.date | None,
) -> tuple[Query, Query, Params]:
    """Check the arguments of `stats_lib.update_job_stats`; return what to try first, what else, and their parameters.

    Raises ValueError, as all of these do, if an argument can never be right.
    """
    update, upsert = _UPDATE_JOB_STATS(_schema(schema))
    id_, name, day, _, successes, timed, ms = _job(action_type_id, marketplace, success, duration, date)
    return update, upsert, (str(id_), name, day, "1", str(successes), str(timed), str(ms))


def update_job_stats_batch(*, schema: str, outcomes: Iterable[JobOutcome]) -> tuple[Query, list[Params]]:
    """Check the arguments of `stats_lib.update_job_stats_batch`; return its statement, and the parameters for each row.

    The order of the rows is that in which every batch locks them. None as the date makes a sum of its own, which the
    database, knowing its clock, adds to that day's.

    The first of several counts nothing: psycopg, if it is cancelled before it has sent anything, sends and commits the
    first alone.
    """
    _, upsert = _UPDATE_JOB_STATS(_schema(schema))
    if isinstance(outcomes, Mapping | Set) or not isinstance(outcomes, Iterable):  # a Counter or a set loses the equal
        raise _refusal("outcomes", outcomes, "an iterable of JobOutcome that can hold equal ones")
    sums: dict[tuple[int, str, str | None], list[int]] = {}
    for index, outcome in enumerate(outcomes):
        try:
            if not isinstance(outcome, JobOutcome):
                raise _refusal("outcome", outcome, "a JobOutcome")
            key_and_sums = _job(
                outcome.action_type_id, outcome.marketplace, outcome.success, outcome.duration, outcome.date
            )
        except ValueError as refusal:
            raise ValueError(f"outcomes[{index}]: {refusal}") from None
        of_key = sums.setdefault(key_and_sums[:3], [0, 0, 0, 0])
        for place, value in enumerate(key_and_sums[3:]):
            of_key[place] += value
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    keys = sorted(sums, key=lambda key: (key[0], key[1], key[2] or today))
    rows: list[Params] = [(str(key[0]), key[1], key[2], *map(str, sums[key])) for key in keys]
    return upsert, [_NOTHING, *rows] if len(rows) > 1 else rows


def get_stats(
    *,
    schema: str,
    marketplace: Marketplace | str | None,
    action_type_id: int | None,
    days: int,
    until: datetime.date | None,
) -> tuple[Query, Params]:
    """Check the arguments of `stats_lib.get_stats`; return its statement and parameters."""
    return _read(_GET_STATS, schema, marketplace, action_type_id, days, until)


def get_summary(
    *,
    schema: str,
    marketplace: Marketplace | str | None,
    action_type_id: int | None,
    days: int,
    until: datetime.date | None,
) -> tuple[Query, Params]:
    """Check the arguments of `stats_lib.get_summary`; return its statement and parameters."""
    return _read(_GET_SUMMARY, schema, marketplace, action_type_id, days, until)


def get_platform_summary(*, days: int, until: datetime.date | None) -> tuple[Query, Params]:
    """Check the arguments of `stats_lib.get_platform_summary`; return its statement and parameters."""
    return _GET_PLATFORM_SUMMARY, (str(_days(days)), _date("until", until))


_Row = TypeVar("_Row")


def rows_of(cls: type[_Row]) -> BaseRowFactory[_Row]:
    """Make a row of values that have the order of its fields; its marketplace is None if this release knows it not.

    By way of a twin that is not frozen: a frozen dataclass sets each field through object.__setattr__, which takes
    thrice as long.
    """
    twin: Any = make_dataclass("twin", [field.name for field in fields(cls)], slots=True, bases=cls.__bases__)  # type: ignore[arg-type]

    def row(values: Sequence[Any]) -> _Row:
        made = twin(*values)
        made.marketplace = _READ_AS.get(made.marketplace)
        made.__class__ = cls
        return made  # type: ignore[no-any-return]

    return lambda _: row


JOB_STATS = rows_of(JobStats)
MARKETPLACE_SUMMARY = rows_of(MarketplaceSummary)
PLATFORM_SUMMARY = rows_of(PlatformSummary)


def known(found: list[JobStats]) -> list[JobStats]:
    """Leave out the rows of marketplaces that a later release has added."""
    return [row for row in found if row.marketplace]


def each_marketplace(
    found: list[MarketplaceSummary], marketplace: Marketplace | str | None
) -> list[MarketplaceSummary]:
    """Add those that had no jobs, unless only one was asked for and is there."""
    by_marketplace = {row.marketplace: row for row in found}
    return [by_marketplace.get(each) or MarketplaceSummary(each, 0, 0, 0, None) for each in _marketplaces(marketplace)]


def each_on_platform(found: list[PlatformSummary]) -> list[PlatformSummary]:
    """Add those that had no jobs, and leave out those that a later release has added."""
    by_marketplace = {row.marketplace: row for row in found}
    skipped = found[0].tenants_skipped  # some are always found
    none = (PlatformSummary(each, 0, 0, 0, 0, None, skipped) for each in _marketplaces(None))
    return [by_marketplace.get(row.marketplace) or row for row in none]


def _read(
    in_schema: Callable[[str], tuple[Query, ...]],
    schema: str,
    marketplace: Marketplace | str | None,
    action_type_id: int | None,
    days: int,
    until: datetime.date | None,
) -> tuple[Query, Params]:
    statements = in_schema(_schema(schema))
    params = [str(_days(days)), _date("until", until)]
    if marketplace is not None:
        params.append(_marketplace(marketplace).value)
    if action_type_id is not None:
        params.append(str(_action_type_id(action_type_id)))
    return statements[(marketplace is not None) + 2 * (action_type_id is not None)], params


def _job(
    action_type_id: int,
    marketplace: Marketplace | str,
    success: bool,
    duration: datetime.timedelta | None,
    date: datetime.date | None,
) -> tuple[int, str, str | None, int, int, int, int]:
    """The key of a job's row, and what is added to it, in the order of _KEY_AND_SUMS."""
    if not isinstance(success, bool):
        raise _refusal("success", success, "True or False")
    milliseconds = None if duration is None else _milliseconds(duration)
    return (
        _action_type_id(action_type_id),
        _marketplace(marketplace).value,
        _date("date", date),
        1,
        int(success),
        int(milliseconds is not None),
        milliseconds or 0,
    )


@lru_cache(maxsize=128)
def _is_name(schema: str) -> bool:
    return bool(_TEXT.fullmatch(schema)) and len(schema.encode()) <= MAX_SCHEMA_BYTES


def _schema(schema: str) -> str:
    if isinstance(schema, str) and _is_name(plain := _plain_str(schema)):
        return plain
    raise _refusal("schema", schema, f"a name of 1 to {MAX_SCHEMA_BYTES} bytes in UTF-8, none of them NUL")


def _marketplace(marketplace: str) -> Marketplace:
    if isinstance(marketplace, str) and (member := _MEMBERS.get(_plain_str(marketplace))):
        return member
    raise _refusal("marketplace", marketplace, " or ".join(repr(m.value) for m in Marketplace))


def _marketplaces(marketplace: Marketplace | str | None) -> list[Marketplace]:
    return sorted(Marketplace) if marketplace is None else [_marketplace(marketplace)]


def _date(name: str, date: datetime.date | None) -> str | None:
    if date is None:
        return None
    if not isinstance(date, datetime.date) or isinstance(date, datetime.datetime):
        raise _refusal(name, date, "a datetime.date without a time, or None for today in UTC")
    return datetime.date.isoformat(date)


def _action_type_id(action_type_id: int) -> int:
    return _integer("action_type_id", action_type_id, MIN_ACTION_TYPE_ID, MAX_ACTION_TYPE_ID)


def _days(days: int) -> int:
    return _integer("days", days, 1, MAX_DAYS)


def _milliseconds(duration: datetime.timedelta) -> int:
    if isinstance(duration, datetime.timedelta):
        milliseconds = _divided(duration, _MILLISECOND)
        if 0 <= milliseconds <= MAX_MILLISECONDS:
            return round(milliseconds)
    longest = MAX_MILLISECONDS * _MILLISECOND
    raise _refusal("duration", duration, f"a datetime.timedelta from 0 to {longest}, or None")


def _integer(name: str, value: int, low: int, high: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and low <= (plain := _plain_int(value)) <= high:
        return plain
    raise _refusal(name, value, f"an integer from {low} to {high}")


def _refusal(name: str, value: object, allowed: str) -> ValueError:
    try:
        got = repr(value)
    except Exception:  # such as for an integer of too many digits
        got = object.__repr__(value)
    return ValueError(f"{name} must be {allowed}; got {got:.200}")
