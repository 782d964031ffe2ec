"""How alembic reaches the database: by the connection that `cahlib.tracker.migrate` hands over."""

from alembic import context

from cahlib.ledger.schema import schema

context.configure(connection=context.config.attributes["connection"], target_metadata=schema)
context.run_migrations()
