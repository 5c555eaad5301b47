"""yoyo's command line, forked from a process that has imported it and split the SQL: half a second faster each time.

What runs is yoyo's own `main` in a process of its own; `multiprocessing` keeps the one that is forked.
"""

import os
import sys
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory

import psycopg  # noqa: F401  yoyo imports it late
import sqlparse
from sqlparse import split
from yoyo.scripts.main import main

_context = get_context("forkserver")
_context.set_forkserver_preload(["tests.forks"])
_ROOT = Path(__file__).resolve().parent.parent


def run_yoyo(argv: tuple[str, ...], env: dict[str, str], seconds: float) -> CompletedProcess[str]:
    """Run yoyo from the top of the checkout, in this environment alone, with nothing to read."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _context.Process(target=_yoyo, args=(argv, env, out, err))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            raise TimeoutExpired(["yoyo", *argv], seconds, out.read_bytes(), err.read_bytes())
        assert process.exitcode is not None
        return CompletedProcess(["yoyo", *argv], process.exitcode, out.read_text("utf-8"), err.read_text("utf-8"))


def _yoyo(argv: tuple[str, ...], env: dict[str, str], out: Path, err: Path) -> None:
    for path, stream in [(out, sys.stdout), (err, sys.stderr)]:
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), stream.fileno())
    os.environ.clear()
    os.environ.update(env)
    os.chdir(_ROOT)
    sys.argv[0] = "yoyo"
    sys.exit(main(argv))


@cache
def _split(text: str) -> tuple[str, ...]:
    return tuple(split(text))


def _split_once(text: str) -> list[str]:
    return [*_split(text)]


sqlparse.split = _split_once  # type: ignore[assignment]
for _file in _ROOT.glob("sql/*/*.sql"):
    _split(_file.read_text("utf-8"))
