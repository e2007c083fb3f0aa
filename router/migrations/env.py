"""How Alembic runs: on the connection that `router.database.migrate` gives it, in one transaction."""

from __future__ import annotations

from alembic import context

from router.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
