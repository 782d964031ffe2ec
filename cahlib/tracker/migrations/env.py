"""Alembic's environment, which uses the connection of `cahlib.tracker.migrate`."""

from alembic import context

from cahlib.tracker.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
