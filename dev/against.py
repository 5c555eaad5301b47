"""What a change to sql/ costs: the migrations of another revision beside those of the working tree, in one run.

    python -m dev.against HEAD~1 [TENANTS [REPETITIONS]]

On a private server, by psql, in turns. A third of the tenants belong to roles of their own, in whose name their rows
are changed and their foreign keys checked. A figure is seconds of the server's processor, which do not hang on the
disk: the median of the repetitions; beside it, what matters: the median of the ratios, turn by turn, with their range.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import sleep

import psutil
import psycopg

from dev.server import Server, throwaway_server

ROOT = Path(__file__).resolve().parent.parent
STEPS = "toolkit", "up", "again, with nothing to do", "verification", "down"
TENANTS = """
CREATE SCHEMA vinted;
CREATE TABLE vinted.action_types (id integer PRIMARY KEY);
INSERT INTO vinted.action_types SELECT generate_series(1, 5);
CREATE SCHEMA template_tenant;
CREATE TABLE template_tenant.vinted_job_stats (
    id serial PRIMARY KEY, action_type_id integer NOT NULL, date date NOT NULL,
    total_jobs integer NOT NULL DEFAULT 0, success_count integer NOT NULL DEFAULT 0,
    failure_count integer NOT NULL DEFAULT 0, avg_duration_ms integer, created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (action_type_id, date)
);
CREATE PROCEDURE pg_temp.make(tenants integer) LANGUAGE plpgsql AS $$
DECLARE
    owner name;
BEGIN
    FOR tenant IN 1..tenants LOOP
        EXECUTE format('CREATE SCHEMA user_%s', tenant);
        EXECUTE format(
            'CREATE TABLE user_%s.vinted_job_stats (LIKE template_tenant.vinted_job_stats INCLUDING ALL)', tenant
        );
        EXECUTE format('INSERT INTO user_%s.vinted_job_stats (action_type_id, date)
            SELECT a, date ''2026-01-01'' + d FROM generate_series(1, 5) AS a, generate_series(1, 6) AS d', tenant);
        IF tenant % 3 > 0 THEN
            EXECUTE format('ALTER TABLE user_%s.vinted_job_stats
                ADD FOREIGN KEY (action_type_id) REFERENCES vinted.action_types', tenant);
        END IF;
        IF tenant % 3 = 1 THEN
            owner := format('user_%s_%s', current_database(), tenant);
            EXECUTE format('CREATE ROLE %I', owner);
            EXECUTE format('ALTER SCHEMA user_%s OWNER TO %I', tenant, owner);
            EXECUTE format('ALTER TABLE user_%s.vinted_job_stats OWNER TO %I', tenant, owner);
        END IF;
        IF tenant % 100 = 0 THEN
            COMMIT;
        END IF;
    END LOOP;
END
$$;
"""


def files_of(step: str, migrations: Path) -> list[Path]:
    """The files that a step runs, in order; a revision may have other numbers, and more files."""
    files = [file for file in sorted(migrations.glob("*.sql")) if not file.stem.endswith(".rollback")]
    changes = [file for file in files if file.stem.endswith((".marketplace-job-stats", ".exact-averages"))]
    verify = [file for file in files if file.stem.startswith("post-apply")]
    if step == "toolkit":
        return [file for file in files if file not in changes + verify]
    if step == "down":
        return [file.with_suffix(".rollback.sql") for file in reversed(changes)]
    return verify if step == "verification" else changes


def processor_seconds(postmaster: psutil.Process) -> float:
    """What the sessions that have ended have used."""
    sleep(0.2)  # until the last one's process has
    times = postmaster.cpu_times()
    return float(times.children_user + times.children_system)


def lives(server: Server, sql: Path, name: str, tenants: int) -> dict[str, float]:
    """The seconds of each step, in a database that is dropped afterwards."""
    seconds = {}
    env = {**server.env(name), "PGOPTIONS": "-c client_min_messages=warning"}
    with psycopg.connect(server.url(), autocommit=True) as conn:
        postmaster = psutil.Process(conn.info.backend_pid).parent()
        assert postmaster is not None
        conn.execute(f"CREATE DATABASE {name}".encode())
        with psycopg.connect(server.url(name), autocommit=True) as own:
            own.execute(TENANTS.encode())
            own.execute(f"CALL pg_temp.make({tenants})".encode())
            own.execute("VACUUM ANALYZE")
        for step in STEPS:
            conn.execute("CHECKPOINT")
            files = files_of(step, sql / "migrations")
            start = processor_seconds(postmaster)
            for file in files:
                alone = ["--single-transaction"] if step == "toolkit" else []
                psql = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", *alone, f"--file={file}"]
                subprocess.run(psql, check=True, env=env, stdout=subprocess.DEVNULL)
            seconds[step] = processor_seconds(postmaster) - start
        conn.execute(f"DROP DATABASE {name}".encode())
        for (role,) in conn.execute("SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s)", [f"user_{name}"]):
            conn.execute(f'DROP ROLE "{role}"'.encode())
    return seconds


def main(revision: str, tenants: int = 1000, repetitions: int = 5) -> None:
    """Print a line a step."""
    with TemporaryDirectory() as folder, throwaway_server(settings={"autovacuum": "off"}) as server:
        archive = subprocess.run(["git", "archive", revision, "sql"], check=True, cwd=ROOT, capture_output=True)
        subprocess.run(["tar", "--extract", "--directory", folder], check=True, input=archive.stdout)
        runs = []
        for turn in range(repetitions):
            sides = {"then": Path(folder, "sql"), "now": ROOT / "sql"}
            order = list(sides) if turn % 2 else list(reversed(sides))  # neither is always the first
            seconds = {side: lives(server, sides[side], f"{side}_{turn}", tenants) for side in order}
            runs.append([seconds["then"], seconds["now"]])
    print(f"{tenants} tenants, median of {repetitions}; then: {revision}")
    for step in STEPS:
        ratios = [now[step] / then[step] for then, now in runs]
        then, now = (median(run[side][step] for run in runs) for side in (0, 1))
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{step:26} {then:7.2f} s then {now:7.2f} s now, ratio {median(ratios):.2f} ({spread})")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
