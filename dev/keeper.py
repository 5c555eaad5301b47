"""Runs one PostgreSQL for as long as standard input stays open, then removes every trace of it.

`dev.server` starts this file as a process of its own, in a session of its own, so that whatever ends the starter,
SIGKILL of its whole process group included, is one and the same event here: end of file on standard input.

    keeper.py BIN_DIR fast|durable [SETTING=VALUE ...]

Once the server accepts connections, its folder (data, log and socket) is printed on one line. Nothing is printed if it
does not start; the reason is then on standard error.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_SECONDS_TO_START = 60
_GIB = 1024**3


def main(bin_dir: Path, *more_settings: str, durable: bool) -> None:
    """Keep a server running until standard input ends or SIGTERM arrives.

    On the way out the server is stopped at once (`immediate`: nothing of it is kept) and its folder removed.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = Path(tempfile.mkdtemp(prefix="job-stats-", dir=_parent_folder(durable=durable)))
    try:
        as_user = _unprivileged(folder)
        bin_dir = _executable(bin_dir, folder, as_user)
        data = _initdb(bin_dir, folder, as_user)
        with (folder / "log").open("wb") as log:
            more = [f"--{setting}" for setting in more_settings]
            command = [f"{bin_dir}/postgres", f"-D{data}", *_settings(folder, durable=durable), *more]
            postgres = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_user)
        try:
            _wait_until_ready(postgres, folder)
            with contextlib.suppress(BrokenPipeError):  # the starter is gone already: end of file follows
                os.write(sys.stdout.fileno(), f"{folder}\n".encode())
            while os.read(sys.stdin.fileno(), 1024):
                pass
        finally:
            postgres.send_signal(signal.SIGQUIT)
            postgres.wait()
    finally:
        shutil.rmtree(folder)


def _parent_folder(*, durable: bool) -> Path:
    # Never TMPDIR: it may be closed to the server's user, or too long for a socket's path (some 100 bytes).
    if durable:
        return Path("/var/tmp")  # noqa: S108  on disk, where /tmp may be memory
    memory = Path("/dev/shm")  # noqa: S108
    if memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _GIB:
        return memory
    return Path("/tmp")  # noqa: S108


def _unprivileged(folder: Path) -> dict[str, Any]:
    """Arguments for `subprocess` to run the server's programs with; PostgreSQL refuses to run as root."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    as_user: dict[str, Any] = {"cwd": folder, "env": environment | {"LC_ALL": "C"}}
    if os.geteuid() == 0:
        users = {user.pw_name: user for user in pwd.getpwall()}
        user = users.get("postgres") or users["nobody"]
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return as_user


def _executable(bin_dir: Path, folder: Path, as_user: dict[str, Any]) -> Path:
    """`bin_dir`, or a copy of its installation in `folder` if the server's user may not read it, as in root's home."""
    try:
        subprocess.run([bin_dir / "postgres", "--version"], check=True, stdout=subprocess.DEVNULL, **as_user)
    except PermissionError:
        installation = bin_dir.parent
        copy = shutil.copytree(installation, folder / "wheel" / "package" / installation.name, symlinks=True)
        for libraries in installation.parent.parent.glob("*.libs"):  # where a wheel keeps them, found relative to bin
            shutil.copytree(libraries, folder / "wheel" / libraries.name)
        return copy / bin_dir.name
    return bin_dir


def _initdb(bin_dir: Path, folder: Path, as_user: dict[str, Any]) -> Path:
    version = subprocess.run([bin_dir / "postgres", "--version"], check=True, capture_output=True, text=True, **as_user)
    major = int(re.findall(r"\d+", version.stdout)[0])
    data = folder / "data"
    command = [f"{bin_dir}/initdb", f"-D{data}", "-Upostgres", "-Atrust", "-EUTF8", "--no-sync", "--locale=C"]
    if major >= 17:
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    initdb = subprocess.run(command, capture_output=True, text=True, **as_user)
    if initdb.returncode:
        sys.exit(f"{initdb.stdout}{initdb.stderr}")
    return data


def _settings(folder: Path, *, durable: bool) -> list[str]:
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(folder),
        "dynamic_shared_memory_type": "mmap",  # in the data folder, where nothing can be left behind
        "max_connections": "100",
    }
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}  # which comes when it likes
    return [f"--{name}={value}" for name, value in settings.items()]


def _wait_until_ready(postgres: "subprocess.Popen[Any]", folder: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline and postgres.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if (folder / "data" / "postmaster.pid").read_text().rstrip().endswith("ready"):
                return
        time.sleep(0.01)
    sys.exit((folder / "log").read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[3:], durable=sys.argv[2] == "durable")
