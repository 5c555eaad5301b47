"""What our migrations do to a clone of the template, as Alembic's operations. All names are taken for granted."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None

OLD, NEW = "vinted_job_stats", "marketplace_job_stats"
NOT_NULL = sa.text("SELECT conname FROM pg_constraint WHERE conrelid = CAST(:name AS regclass) AND contype = 'n'")


def upgrade() -> None:
    """Do it to the schema that search_path names."""
    op.rename_table(OLD, NEW)
    named = op.get_bind().scalars(NOT_NULL, {"name": NEW}).all()  # since PostgreSQL 18
    op.add_column(NEW, sa.Column("marketplace", sa.String(20), server_default="vinted", nullable=False))
    op.create_check_constraint(f"ck_{NEW}_marketplace", NEW, "marketplace::text IN ('vinted', 'ebay', 'etsy')")
    op.drop_constraint(f"{OLD}_action_type_id_date_key", NEW)
    op.create_unique_constraint(f"uq_{NEW}_action_marketplace_date", NEW, ["action_type_id", "marketplace", "date"])
    op.create_index(f"ix_{NEW}_marketplace_created_at", NEW, ["marketplace", "created_at"])
    op.execute(f"ALTER INDEX {OLD}_pkey RENAME TO {NEW}_pkey")
    for name in named:
        op.execute(f"ALTER TABLE {NEW} RENAME CONSTRAINT {name} TO {name.replace(OLD, NEW)}")
    op.execute(
        f"CREATE VIEW {OLD} WITH (security_invoker = true) AS"
        " SELECT id, action_type_id, date, total_jobs, success_count, failure_count, avg_duration_ms, created_at"
        f" FROM {NEW} WHERE marketplace::text = 'vinted' WITH CASCADED CHECK OPTION"
    )
    op.add_column(NEW, sa.Column("untimed_jobs", sa.Integer()))
    op.add_column(NEW, sa.Column("total_duration_ms", sa.BigInteger()))
