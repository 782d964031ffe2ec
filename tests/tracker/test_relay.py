"""Storage whose drivers fail in ways of their own costs a shard, and no run."""

import fsspec
import pytest
from fsspec.spec import AbstractFileSystem

from cahlib import relay
from cahlib.errors import ShardError
from cahlib.records import Shard

SHARD = Shard(id="a", url="https://example.org/a.warc.wat.gz", half=0)
BROUGHT = {"url": "moody://parcels/a.tar", "sha256": "0" * 64, "size": 5}


class NoCredentials(Exception):
    """What botocore's errors are: exceptions, and nothing more than that."""


class Moody(AbstractFileSystem):
    """Storage that tells no sizes, and (as that of https does) knows no removing."""

    protocol = "moody"

    def info(self, path, **options):
        raise NoCredentials("Unable to locate\ncredentials.")


@pytest.fixture(autouse=True)
def moody():
    fsspec.register_implementation("moody", Moody, clobber=True)


def test_any_error_of_a_driver_costs_the_shard_alone(tmp_path):
    says = r"moody://parcels/a.tar cannot be reached: Unable to locate credentials \(NoCred"
    with pytest.raises(ShardError, match=says):
        relay.fetch(SHARD, BROUGHT, tmp_path, limit=9, report=print)


def test_a_parcel_that_cannot_be_removed_stays():
    relay.drop(BROUGHT)
