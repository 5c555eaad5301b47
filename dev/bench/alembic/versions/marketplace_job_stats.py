"""What our migrations do to a clone of the template, a statement at a time."""

from alembic import op

from dev.bench.upgrade import CHANGES

revision, down_revision = "1", None


def upgrade() -> None:
    """Do it to the schema that search_path names."""
    for statement in "".join(CHANGES).split(";")[:-1]:
        op.execute(statement)
