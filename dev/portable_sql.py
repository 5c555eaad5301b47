r"""Checks that SQL keeps to what Citus takes where each tenant's schema is a distributed one.

What Citus 13.2 refuses, or silently does otherwise than PostgreSQL, is in `_FORBIDDEN`, `_FIRST`, `_alter_table` and
`_several`. Looked into are statements, what is between dollar quotes, and literals that begin as a statement does; in
comments and other literals anything goes. A statement that is not for Citus, or may stay there, has a comment that says
why, on its line or the one before:

    -- not on Citus: reason
    -- on Citus: reason

    python -m dev.portable_sql sql/migrations/*.sql
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_TOKEN = re.compile(
    r"""
      (?P<space> \s+ | --[^\n]* | /\*.*?\*/ )
    | (?P<body> (?P<quote>\$(?:[a-z_]\w*)?\$) (?P<in_body>.*?) (?P=quote) )
    | (?P<literal> e'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' )
    | (?P<name> "(?:[^"]|"")*" )
    | (?P<code> [\w.]+ | . )
    """,
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
_BEGINS = re.compile(  # RENAME: as in 'ALTER TABLE ' || name || ' RENAME ...'
    r"\s*(ALTER|BEGIN|CALL|CREATE|DELETE|DO|DROP|INSERT|RENAME|SELECT|SET|UPDATE|WITH)\s", re.IGNORECASE
)
_EXCUSE = re.compile(r"-- (not )?on Citus: \S")

_MUTABLE = (  # functions that are not immutable: those that a counter or a time stamp might use
    r"(NOW|(CLOCK|STATEMENT|TRANSACTION)_TIMESTAMP|TIMEOFDAY|RANDOM|GEN_RANDOM_UUID|NEXTVAL|CURRVAL|CURRENT_SETTING) \("
    r"|(CURRENT_(DATE|TIME|TIMESTAMP|USER|ROLE|SCHEMA)|SESSION_USER|LOCALTIME|LOCALTIMESTAMP)\b"
)
_HERE = r"(?:(?!\bRETURNING\b).)"  # not in the next statement of a WITH
# Searched for in a statement's words: code in upper case, literals in lower case, one space between any two.
_FORBIDDEN = {
    r"RENAME CONSTRAINT\b": "rename its index, which renames it, too: ALTER INDEX ... RENAME",
    r"CREATE (OR REPLACE )?(CONSTRAINT )?TRIGGER\b": "distributed tables have no triggers",
    rf"ON CONFLICT .*?\b({_MUTABLE})": "from ON CONFLICT on, only immutable functions: take the value from excluded",
    r"DO UPDATE .*?(?<!DISTINCT )\bFROM [^(]": "DO UPDATE cannot read a table",
    r"INTO \S+ (AS \S+ )?(\( [^()]*\) )?VALUES .*? DO UPDATE .*?\bSELECT\b": "a subquery needs INSERT ... SELECT",
    r"SET (SESSION )?LOCK_TIMEOUT\b": "the workers do not get it: SET LOCAL",
    r"SET_CONFIG \( 'lock_timeout'": "the workers do not get it: SET LOCAL lock_timeout",
    r"EXCEPTION WHEN\b": "if a worker is lost, such a block inside another crashes the coordinator: check first",
    r"EXECUTE (RUN|SCRIPT|UNDO)\b": "several statements: make one DO block of them",
    r"EXISTS \( SELECT FROM \{ TABLE \}": "it may become a subplan: SELECT 1 FROM",
    rf"UPDATE {_HERE}*?\bWHERE {_HERE}*?(?<!SELECT )COALESCE \({_HERE}{{1,60}}?\b({_MUTABLE})": (
        "no COALESCE of a mutable function in WHERE: (SELECT coalesce(...))"
    ),
    r"MERGE INTO\b.*?\bNOW \(": "MERGE with now()",
    r"INSERT INTO (?:(?! ON CONFLICT ).)*?\bFROM UNNEST \(.*?\bNOT EXISTS \(": (
        "no such subquery beside unnest(): select that in a WITH ... AS MATERIALIZED"
    ),
}
_FIRST = {  # what must come before, in the same body; for a schema either setting, which a regular expression says
    r"SET LOCAL LOCK_TIMEOUT\b": "SET LOCAL citus.propagate_set_commands = 'local'",
    r"CREATE SCHEMA\b": "SET LOCAL citus.enable_(ddl_propagation|schema_based_sharding) = off",
    r"CREATE (OR REPLACE )?(FUNCTION|PROCEDURE)\b": "SET LOCAL citus.enable_ddl_propagation = off",
}


def problems(sql: str) -> list[tuple[int, str]]:
    """The line of each thing that is not portable, and the reason; and of each excuse for nothing."""
    excuses = {line for line, text in enumerate(sql.split("\n"), 1) if _EXCUSE.search(text)}
    found, used = set(), set()
    for line, problem in _look_into(sql, 1, []):
        if excuse := excuses & {line - 1, line}:
            used |= excuse
        else:
            found.add((line, problem))
    return sorted(found | {(line, "an excuse for nothing") for line in excuses - used})


def _look_into(sql: str, line: int, before: list[str]) -> Iterator[tuple[int, str]]:
    """The problems of a text that begins on `line`, after the statements `before`, to which its own are added."""
    words: list[str] = []
    lines: list[int] = []
    literals: list[str] = []
    for token in _TOKEN.finditer(f"{sql}\n;"):
        kind, text = token.lastgroup, token[0]
        word = ""
        if kind == "body":
            yield from _look_into(token["in_body"], line, [])
            word = "''"
        elif kind == "literal":
            literals.append(text[text.index("'") + 1 : -1].replace("''", "'"))
            if _BEGINS.match(literals[-1]):
                yield from _look_into(literals[-1], line, before)
            word = text.lower() if re.fullmatch(r"'\w*'", text) else "''"
        elif kind == "name":
            word = '""'
        elif kind == "code" and text != ";":
            word = text.upper()
        if word:
            words.append(word)
            lines.append(line)
        elif text == ";":
            statement = " ".join(words)
            for place, problem in _problems_of(statement, " ".join(literals), before):
                yield lines[statement.count(" ", 0, place)], problem
            before.append(statement)
            words, lines, literals = [], [], []
        line += text.count("\n")


def _problems_of(statement: str, literals: str, before: list[str]) -> Iterator[tuple[int, str]]:
    for pattern, problem in _FORBIDDEN.items():
        for found in re.finditer(rf"\b{pattern}", statement):
            yield found.end() - 1, problem
    for pattern, first in _FIRST.items():
        needed = first.upper().replace("'LOCAL'", "'local'")
        if not any(re.search(f"{needed}$", text) for text in before):
            for found in re.finditer(rf"\b{pattern}", statement):
                yield found.end() - 1, f"not without an earlier {first}"
    for found in re.finditer(r"\bALTER TABLE\b", statement):
        if problem := _alter_table(statement[found.end() :]):
            yield found.end() - 1, problem
    for found in re.finditer(r"\bEXECUTE\b", statement):
        if _several(literals):
            yield found.end() - 1, "several statements in one EXECUTE: make one DO block of them"


def _alter_table(actions: str) -> str:
    while (shorter := re.sub(r"\([^()]*\)", "", actions)) != actions:
        actions = shorter
    if re.search(r"\bADD (CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b", actions):
        return "ADD CONSTRAINT goes alone" if "," in actions else ""
    constraints = re.finditer(r"(CONSTRAINT \S+ )?\b(CHECK|UNIQUE|PRIMARY KEY|REFERENCES)\b", actions)
    return "" if all(found[1] for found in constraints) else "ADD COLUMN needs a name for its constraint"


def _several(text: str) -> bool:
    tokens = [token[0] for token in _TOKEN.finditer(text) if token.lastgroup != "space"]
    return ";" in tokens[:-1]


def main(files: list[str]) -> int:
    """Print the problems of the files; return 1 if there are any, or no files."""
    found = [f"{file}:{line}: {why}" for file in files for line, why in problems(Path(file).read_text("utf-8"))]
    print(*found, sep="\n", end="\n" * bool(found))
    return int(bool(found) or not files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
