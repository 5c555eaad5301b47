"""Alembic for a schema per tenant, as its cookbook has it: over all schemas, or the first 1,000 if there are more."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

TENANTS = text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'user\\_%' ORDER BY nspname LIMIT 1000")

with create_engine("postgresql+psycopg://", poolclass=NullPool).connect() as connection:
    for schema in connection.scalars(TENANTS).all():
        connection.execute(text(f'SET search_path TO "{schema}"'))
        connection.commit()
        connection.dialect.default_schema_name = schema
        context.configure(connection=connection)
        with context.begin_transaction():
            context.run_migrations()
