r"""Checks with squawk what a migration runs in each tenant: the text between two `$tenant$` in the files given.

squawk finds DDL that locks too much or breaks running code, but sees nothing inside a string. Everything around the
text is blanked, so that line numbers stay those of the file.

    python -m dev.tenant_ddl sql/migrations/*.sql
"""

import re
import subprocess
import sys
from pathlib import Path


def tenant_ddl(migration: str) -> str:
    """The statements for one tenant, each on the line where the migration has it; "" if there are none."""
    parts = migration.split("$tenant$")
    return "".join(part if i % 2 else re.sub(r"[^\n]", "", part) for i, part in enumerate(parts)).rstrip()


def main(files: list[str]) -> int:
    """Return squawk's worst exit status, or 1 if none of the files runs anything in tenants."""
    statuses = []
    for file in files:
        if script := tenant_ddl(Path(file).read_text("utf-8")):
            if file.endswith(".rollback.sql") or "contract" in Path(file).parts:  # their purpose is to take away
                ignored = "ban-drop-column, ban-drop-constraint, ban-drop-view, ban-drop-default"
                ignored += ", require-concurrent-index-deletion"
                script = f"-- squawk-ignore-file {ignored}" + script
            statuses.append(subprocess.run(["squawk", f"--stdin-filepath={file}"], input=script, text=True).returncode)
    return max(statuses, default=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
