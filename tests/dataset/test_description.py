"""What a dataset says of itself, and what is said where that is damaged."""

from cahlib.dataset.description import (
    DESCRIPTION_FILE,
    Description,
    commit_shards,
    find_description,
    stored_job,
)


def test_a_damaged_file_is_told_of_once_until_it_is_sound_again(tmp_path, caplog):
    commit_shards(tmp_path, Description(digest="5" * 64), ["s-0"])
    path = tmp_path / DESCRIPTION_FILE
    sound = path.read_bytes()
    for times in (1, 2):
        path.write_bytes(sound[:-1])
        assert find_description(tmp_path) is None is find_description(tmp_path)
        assert [each.getMessage().partition("(")[0] for each in caplog.records] == [
            f"{path} is damaged "
        ] * times
        path.write_bytes(sound)
        assert find_description(tmp_path).committed == ("s-0",)


def test_so_is_a_damaged_job(tmp_path, caplog):
    path = tmp_path / "run" / "job.json"
    path.parent.mkdir()
    path.write_text("{")
    assert stored_job(tmp_path) is None is stored_job(tmp_path)
    assert len(caplog.records) == 1 and str(path) in caplog.text
