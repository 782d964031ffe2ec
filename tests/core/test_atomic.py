"""A file that is being replaced is the old one or the new one, never a part of it."""

import os

import pytest

from cahlib.core.atomic import new_file, write_file
from cahlib.core.errors import ConfigError


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_file(tmp_path / "a" / "file", "old")
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "a" / "file") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["old"]


def test_a_secret_is_the_owners_alone_though_a_crash_left_a_readable_part(tmp_path):
    left = tmp_path / f".key.{os.getpid()}.part"
    left.write_text("left")
    left.chmod(0o644)
    write_file(tmp_path / "key", b"secret", mode=0o600, sync=False)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_place_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_file(tmp_path / "file" / "below", "")
