"""The throwaway server: it starts anywhere, and leaves nothing behind however it ends."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from dev.server import Server, throwaway_server, wheel_bin_dir
from tests.deploy import ROOT

NONSENSE = {"PGHOST": "nonsense", "PGPORT": "1", "PGUSER": "nonsense", "PGDATABASE": "nonsense", "PGOPTIONS": "-c x"}
SHOW = "SELECT current_user, current_setting('listen_addresses')"


def dev_server(*command: str) -> list[str]:
    """The command line that runs `command` with a server to itself."""
    return [sys.executable, "-m", "dev.server", *command]


def start_and_say_where() -> "subprocess.Popen[str]":
    """A process group of a program and its server, which prints the server's folder and waits to be ended."""
    return subprocess.Popen(
        dev_server("sh", "-c", 'echo "$PGHOST"; exec cat'),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_in(folder: str) -> list[str]:
    """The names of the processes whose current directory is in `folder`: a server's, all of them."""
    processes = psutil.process_iter(["name", "cwd"])
    return [process.info["name"] for process in processes if (process.info["cwd"] or "").startswith(folder)]


def assert_nothing_left_of(folder: str) -> None:
    """Neither files nor processes."""
    assert not Path(folder).exists()
    assert [] == processes_in(folder)


def test_no_libpq_variable_of_ours_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment asks of a server of the developer's is not asked of the throwaway one."""
    for name, value in {"PGOPTIONS": "-c default_transaction_read_only=on", "PGSERVICE": "mine"}.items():
        monkeypatch.setenv(name, value)
    with throwaway_server() as server, psycopg.connect(server.url()) as conn:
        conn.execute("CREATE TABLE public.written ()")


def test_nothing_is_left_after_use() -> None:
    """When the `with` block ends, the server's processes and files are gone."""
    with throwaway_server() as server:
        assert processes_in(server.host)

    assert_nothing_left_of(server.host)


def test_nothing_is_left_after_an_error() -> None:
    """An error in the `with` block passes through, and leaves nothing even if a connection is still open."""
    with contextlib.ExitStack() as later, pytest.raises(psycopg.errors.DivisionByZero), throwaway_server() as server:
        later.enter_context(contextlib.closing(psycopg.connect(server.url()))).execute("SELECT 1 / 0")

    assert_nothing_left_of(server.host)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_process_group_is_ended(ending: signal.Signals) -> None:
    """SIGTERM or SIGKILL to the whole process group, as from an impatient CI, leaves nothing."""
    with start_and_say_where() as program:
        assert program.stdout is not None
        folder = program.stdout.readline().rstrip()
        assert processes_in(folder)

        os.killpg(program.pid, ending)
        program.communicate()  # to the end of standard error, which the server's keeper is the last to close

    assert_nothing_left_of(folder)


def test_the_environment_is_ignored() -> None:
    """PG… variables, whatever they say, reach neither the server nor the command."""
    env = {**os.environ, **NONSENSE}
    psql = subprocess.run(dev_server("psql", "-XAtc", SHOW), cwd=ROOT, env=env, capture_output=True, text=True)

    assert (0, "postgres|\n") == (psql.returncode, psql.stdout), psql.stderr


def test_a_shell_to_try_the_runbook_in() -> None:
    """`make play` has the legacy tenants, yoyo and psql, whatever the PG… variables say; all is gone when it ends."""
    commands = """
        echo "$PGHOST"
        yoyo apply --revision 0019 >/dev/null
        psql -XAtc "SELECT count(*) > 10, every(state IN ('legacy', 'missing')) FROM job_stats.tenant_status"
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | NONSENSE
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    make = ["make", "--old-file=.venv/installed", "play"]  # with what is installed for us
    played = subprocess.run(make, cwd=ROOT, env=env, input=commands, capture_output=True, text=True)

    assert 0 == played.returncode, played.stderr
    _, folder, legacy = played.stdout.splitlines()
    assert "t|t" == legacy
    assert_nothing_left_of(folder)


@pytest.mark.parametrize("status", [0, 7])
def test_the_status_of_the_command_is_passed_on(status: int) -> None:
    """`python -m dev.server COMMAND` ends as COMMAND does."""
    assert status == subprocess.run(dev_server("sh", "-c", f"exit {status}"), cwd=ROOT).returncode


def test_a_command_is_asked_for() -> None:
    """Without a command there is a usage message, and no server."""
    usage = subprocess.run(dev_server(), cwd=ROOT, capture_output=True, text=True)

    assert 2 == usage.returncode
    assert "COMMAND" in usage.stderr


def test_a_server_that_does_not_start_says_so(tmp_path: Path) -> None:
    """A folder without PostgreSQL's programs is an error that names it."""
    with pytest.raises(RuntimeError, match=str(tmp_path)), throwaway_server(tmp_path):
        pytest.fail("it started")


def test_a_url_can_hold_any_name() -> None:
    """Names and passwords are quoted in URLs."""
    url = Server("/a folder", 5432, "me@home", Path(), "p:/?#").url("data base/1")

    expected = {"host": "/a folder", "port": "5432", "user": "me@home", "password": "p:/?#", "dbname": "data base/1"}
    assert expected == conninfo_to_dict(url)


@pytest.fixture
def readable_copy() -> Iterator[Path]:
    """A folder that every user can read, with a copy of what a server needs: `dev` and the wheel."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        package = wheel_bin_dir().parent.parent
        for source in [ROOT / "dev", package, *package.parent.glob(f"{package.name}.libs")]:
            shutil.copytree(source, folder / source.name, symlinks=True)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: the other tests show it")
def test_an_ordinary_user_can_start_one(readable_copy: Path) -> None:
    """Neither root nor a system user of its own is needed."""
    recent = "import sys; sys.exit(sys.version_info < (3, 11))"
    candidates = [sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"]
    for python in filter(os.path.exists, candidates):
        with contextlib.suppress(PermissionError):  # as for a Python in root's home
            if subprocess.run([python, "-c", recent], user="nobody", cwd="/").returncode == 0:
                break
    else:
        pytest.skip(f"no Python 3.11 that an ordinary user may run among {candidates}")

    psql = subprocess.run(
        [python, "-m", "dev.server", "psql", "-XAtc", SHOW],
        cwd=readable_copy,
        env={**os.environ, **NONSENSE},
        user="nobody",
        group=pwd.getpwnam("nobody").pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
    )

    assert (0, "postgres|\n") == (psql.returncode, psql.stdout), psql.stderr
