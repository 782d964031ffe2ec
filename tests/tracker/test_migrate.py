"""A database is brought to the tables that the code needs, and is not touched twice."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from cahlib.tracker.database import Database
from cahlib.tracker.migrate import migrate
from cahlib.tracker.schema import schema


def test_the_migrations_lead_to_the_tables_of_the_schema(url):
    database = Database(url)
    migrate(database)
    migrate(database)
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, schema) == []
    database.close()
