"""What a deploy pipeline and a DBA do to a database: yoyo, psql and pg_dump, run as they run them.

Every helper takes a connection and works on the database, and as the user, that it is connected to. Those that return a
`CompletedProcess` leave it to the caller to look at `returncode`, `stdout` and `stderr`.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from dev.server import Server, wheel_bin_dir
from tests.forks import run_yoyo

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 300  # of a command that hangs, even on a busy machine

Result = subprocess.CompletedProcess[str]


def libpq_env(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """Our environment with PGHOST, PGDATABASE, … of `conn`, and the programs of PostgreSQL in PATH."""
    info = conn.info
    return Server(info.host, info.port, info.user, wheel_bin_dir(), info.password or None).env(info.dbname)


def connect(conn: psycopg.Connection[Any], **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
    """Open another connection to the database of `conn`, in autocommit unless told otherwise.

    `options` are those of `psycopg.connect`: `user=…`, `options="-c lock_timeout=1s"`, … Use it in a `with`.
    """
    info = conn.info
    here = {"host": info.host, "port": info.port, "user": info.user, "password": info.password, "dbname": info.dbname}
    return psycopg.connect(**{**here, "autocommit": True, **options})


def yoyo(conn: psycopg.Connection[Any], *argv: str, env: Mapping[str, str] | None = None) -> Result:
    """Run the yoyo command line from the top of the checkout, so that it reads yoyo.ini.

    `env` adds variables: `yoyo(conn, "apply", env={"PGOPTIONS": "-c tenancy.tenants=user_1"})`.
    """
    return run_yoyo(argv, {**libpq_env(conn), **(env or {})}, _SECONDS)


def psql(
    conn: psycopg.Connection[Any], *args: str, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> Result:
    """Run psql, which stops at the first error and reads no .psqlrc."""
    return _run(["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", *args], conn, env, stdin)


def bash(command: str, env: Mapping[str, str], cwd: Path = ROOT) -> str:
    """Run a command of a document as it stands there, and return what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd,
        env={**env, "PSQLRC": "/dev/null", "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def services(file: Path, **databases: psycopg.Connection[Any]) -> dict[str, str]:
    """Our environment with a service file that says where each of `databases` is."""
    texts = []
    for name, conn in databases.items():
        env = libpq_env(conn)
        texts += [f"[{name}]", *(f"{key}={env[f'PG{key.upper()}']}" for key in ["host", "port", "user"])]
        texts += [f"dbname={conn.info.dbname}"]
    file.write_text("\n".join(texts))
    return {key: value for key, value in env.items() if not key.startswith("PG") or key == "PGPASSWORD"} | {
        "PGSERVICEFILE": str(file)
    }


def schema_dump(conn: psycopg.Connection[Any], *schemas: str) -> str:
    """What pg_dump says of all definitions, or of those in `schemas` (names, not patterns); no rows.

    Equal texts mean equal definitions, down to names, owners, grants and comments.
    """
    only = [f'--schema="{schema.replace(chr(34), 2 * chr(34))}"' for schema in schemas]
    dump = _run(["pg_dump", "--schema-only", "--restrict-key=same", *only], conn)  # the key is random otherwise
    dump.check_returncode()
    # What a server from 15.20 on keeps for itself, and a pg_dump of another version prints.
    return re.sub(r"ALTER TABLE ONLY .* SET \(pg_attver=[^)]*\);\n+", "", dump.stdout)


def _run(
    command: list[str], conn: psycopg.Connection[Any], env: Mapping[str, str] | None = None, stdin: str | None = None
) -> Result:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**libpq_env(conn), **(env or {})},
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
