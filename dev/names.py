r"""Checks that our SQL leaves no name for others to take, in whatever search_path it runs (SECURITY.md).

Migrations are read by pgspot: each routine pins its search_path, and what is outside of routines names PostgreSQL's
own. `_EXCEPTIONS` has what it is told to pass over, and why. What it cannot read, and so others check:

- the text between `$tenant$`, which runs in a tenant's path: here, it may have DDL and calls of ours, no function, and
  no operator but between a cast to text and strings; and a constraint reads no rows as whoever migrates;
- the bodies of BEGIN ATOMIC, at which it stops: here, there are none;
- what EXECUTE builds, and routines that set a tenant's path for its triggers' sake (fold_rows, note_added,
  unfold_rows): tests/test_net.py.

Statements of stats_lib run in their caller's path: here, each function and type is pg_catalog's by name, and the
table's marketplace, a varchar, is compared as text. That all other operators have a meaning of PostgreSQL's own, only
their types tell: tests/test_net.py.

    python -m dev.names sql/migrations/*.sql stats_lib/*.sql
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pglast import ast, enums, parse_sql
from pglast.visitors import Visitor

from dev.tenant_ddl import tenant_ddl

_EXCEPTIONS = (
    # A procedure that commits cannot pin its path. These have no operator, function or type that a path could take.
    "--proc-without-search-path=tenancy.for_each_tenant(INOUT migration text,pending text,run text,"
    "lock_timeout_ms integer,attempts integer,INOUT done integer,INOUT already_done integer,INOUT failed integer,"
    "INOUT slowest_ms numeric,INOUT seconds numeric)",
    "--proc-without-search-path=tenancy.run_in_each_tenant(migration text,pending text,run text,"
    "lock_timeout_ms integer,attempts integer,INOUT runs bigint[],INOUT failures text[])",
    "--proc-without-search-path=tenancy.sweep(INOUT done integer,runs bigint[],failures text[])",
    "--proc-without-search-path=job_stats.sweep(INOUT done integer)",
    # As one script, in the order in which they run: CREATE OR REPLACE is safe in a schema that an earlier one made.
    "--append",
)
_DDL = (ast.AlterTableStmt, ast.DropStmt, ast.IndexStmt, ast.LockStmt, ast.RenameStmt)


class _Names(Visitor):
    """Collects what a path could take."""

    def __init__(self, in_tenant: bool) -> None:
        super().__init__()
        self.in_tenant = in_tenant
        self.found: list[str] = []

    def visit_FuncCall(self, _: object, node: ast.FuncCall) -> None:  # noqa: N802
        name = [part.sval for part in node.funcname]
        # The grammar itself makes unnest() of several arrays pg_catalog's, and takes it only so.
        if len(name) == 1 and not (name == ["unnest"] and len(node.args) > 1):
            self.found.append(f"function {name[0]}: say pg_catalog.{name[0]}")

    def visit_TypeName(self, _: object, node: ast.TypeName) -> None:  # noqa: N802
        if len(node.names) == 1 and not self.in_tenant:  # a run's path has pg_catalog first, pg_temp last
            self.found.append(f"type {node.names[0].sval}: say pg_catalog.{node.names[0].sval}")

    def visit_AlterTableCmd(self, _: object, node: ast.AlterTableCmd) -> None:  # noqa: N802
        added = node.def_
        if (
            isinstance(added, ast.Constraint)
            and added.contype in (enums.ConstrType.CONSTR_CHECK, enums.ConstrType.CONSTR_FOREIGN)
            and not added.skip_validation
        ):
            self.found.append(f"constraint {added.conname}: NOT VALID, then CALL tenancy.validate_...")

    def visit_A_Expr(self, _: object, node: ast.A_Expr) -> None:  # noqa: N802
        right = node.rexpr if isinstance(node.rexpr, tuple) else (node.rexpr,)
        if self.in_tenant:
            if not _is_text(node.lexpr) or not all(isinstance(value, ast.A_Const) for value in right):
                self.found.append(f"operator {node.name[-1].sval}: compare a cast to text with strings only")
        elif any(_is_marketplace(side) for side in (node.lexpr, *right)):
            self.found.append("marketplace, a varchar: say marketplace::pg_catalog.text")


def _is_text(node: object) -> bool:
    return isinstance(node, ast.TypeCast) and node.typeName.names[-1].sval == "text"


def _is_marketplace(node: object) -> bool:
    if not isinstance(node, ast.ColumnRef) or any(isinstance(part, ast.A_Star) for part in node.fields):
        return False
    return [part.sval for part in node.fields] in (["marketplace"], ["stats", "marketplace"])


def problems(file: str, text: str) -> Iterator[str]:
    """What pgspot cannot see: in a migration, what it runs in tenants; in stats_lib, all."""
    if "stats_lib" in Path(file).parts:
        # As psycopg sends it: parameters, a table, and other files' text in places of a query or an expression.
        statement = re.sub(r"%\(\w+\)s", "$1", text).replace("{table}", "s.marketplace_job_stats")
        statement = re.sub(r"\{(durations|job_added|excluded_added)\}", "SELECT 1, 1, 1, 1, 1, 1", statement)
        statement = re.sub(r"\{(is_believed|conditions)\}", "true", statement).replace("{jobs}", "job")
        names = _Names(in_tenant=False)
        names(parse_sql(statement))
        yield from names.found
        return
    if re.search(r"\bBEGIN\s+ATOMIC\b", text, re.IGNORECASE):
        yield "BEGIN ATOMIC: pgspot cannot read it; use a string and SET search_path"
    for raw in parse_sql(tenant_ddl(text)):
        if isinstance(raw.stmt, ast.CallStmt):
            if raw.stmt.funccall.funcname[0].sval not in ("tenancy", "job_stats"):
                yield f"{raw.stmt.funccall.funcname[0].sval}: in tenants, only routines of ours are called"
        elif isinstance(raw.stmt, _DDL):
            names = _Names(in_tenant=True)
            names(raw)
            yield from names.found
        else:
            yield f"{type(raw.stmt).__name__}: in tenants, DDL and calls of ours only"


def main(files: list[str]) -> int:
    """Print the problems of the files; return 1 if there are any, or no files."""
    found = [f"{file}: {problem}" for file in files for problem in problems(file, Path(file).read_text("utf-8"))]
    print(*found, sep="\n", end="\n" * bool(found))
    migrations = [file for file in files if "stats_lib" not in Path(file).parts]
    migrations.sort(key=lambda file: (".rollback." in file, Path(file).name))
    spotted = subprocess.run(
        [sys.executable, "-m", "pgspot", *_EXCEPTIONS, *migrations], capture_output=True, text=True
    )
    if spotted.returncode:
        print(spotted.stdout, spotted.stderr)
    return int(bool(found) or spotted.returncode != 0 or not files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
