"""The databases of the tracker's tests, for workers of such a tracker."""

from tests.tracker.conftest import (  # noqa: F401
    Clock,
    clock,
    database,
    fill,
    lease_store,
    postgres,
    postgres_template,
    sqlite_template,
    sqlite_url,
    url,
    wats,
)
