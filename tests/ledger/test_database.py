import pytest
from sqlalchemy import text

from cahlib.ledger import database as databases
from cahlib.ledger.database import Database


def test_a_connection_in_use_is_closed_once_it_is_returned(url):
    database = Database(url)
    with database.read() as connection:
        raw = connection.connection.dbapi_connection
        database.close()
        assert connection.execute(text("SELECT 1")).scalar() == 1
    with pytest.raises(Exception, match="closed"):
        raw.execute("SELECT 1")


def test_a_connection_that_cannot_be_configured_is_closed(postgres):
    import psycopg

    connection = psycopg.connect(postgres.url().replace("+psycopg", ""))
    with pytest.raises(psycopg.Error):
        connection.execute("SELECT nothing")
    with pytest.raises(psycopg.Error):
        databases._configure_postgresql(connection, None)
    assert connection.closed
