"""A Job is the same whichever door it comes through, and refuses what it cannot be."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahlib.core.config import Job, replace_settings, settings
from cahlib.core.errors import ConfigError
from cahlib.core.presets import PRESETS
from cahlib.dataset.description import describe_job
from cahlib.run.environment import build_job


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"shards": "ten"}, "shards: 'ten' is not a whole number from 0 to 999999."),
        ({"shards": -1}, "shards: -1 is not allowed; give a number from 0 to 999999."),
        ({"threshold": "2"}, "threshold: 2 is not allowed; give a number from -1 to 1."),
        ({"threshold": "nan"}, "threshold: nan is not a number from -1 to 1."),
        ({"forms": "images,films"}, "forms: 'films' is not known; choose from images,"),
        ({"og_images": "perhaps"}, "og_images: 'perhaps' is not valid; give yes or no."),
        ({"colour": "red"}, "colour is not a setting; see `cah run --help-all`."),
        ({"preset": "laion"}, "preset: 'laion' is not known; choose from laion400m,"),
        ({"model": "ViT-B-32"}, "threshold: another model needs its own threshold"),
        ({"pretrained": "openai"}, "pretrained: give the model"),
        ({"shards": True}, "shards: True is not a whole number"),
        ({"crawl": 3}, "crawl: 3 is not a text."),
        ({"output": ""}, "output: give a folder or a URL."),
        ({"output": "  "}, "output: give a folder or a URL."),
        ({"tracker": "https://ada:secret@host:8000/x"}, "tracker: a login in its URL"),
    ],
)
def test_a_bad_value_gets_one_sentence_that_names_the_field(values, sentence):
    with pytest.raises(ConfigError) as caught:
        Job.from_values(values)
    assert str(caught.value).startswith(sentence)


def test_a_stored_job_is_the_same_job():
    job = Job.from_values({"crawl": "x.wat.gz", "languages": "en,de", "threshold": "0.25"})
    assert Job.from_values(job.values()) == job
    assert job.crawl.languages == ("en", "de")


def test_every_setting_has_a_help_text_and_a_name_of_its_own():
    names = [setting.name for setting in settings()]
    assert len(names) == len(set(names)) > 30
    assert all(setting.option.help for setting in settings())


def test_options_win_over_the_environment():
    environment = {"CAH_NICKNAME": "ada", "CAH_SHARDS": "3", "CAH_UNKNOWN": "x", "HOME": "/"}
    job = build_job({"shards": "4"}, environment)
    assert (job.nickname, job.crawl.shards) == ("ada", 4)


def test_only_what_changes_the_dataset_makes_another_job():
    job = Job()
    assert job.differences(replace_settings(job, shards=9, connections=9, nickname="bob")) == {}
    assert list(job.differences(replace_settings(job, threshold=0.1, resize=256))) == [
        "resize",
        "threshold",
    ]
    there = replace_settings(job, output="s3://bucket/mine")
    assert (
        job.differences(replace_settings(job, output="./dataset/"))
        == there.differences(there)
        == {}
    )
    assert list(job.differences(there)) == ["output"]
    assert list(there.differences(replace_settings(job, output="s3://other/mine"))) == ["output"]


def test_a_preset_brings_model_and_threshold_and_the_threshold_may_differ():
    for name, preset in PRESETS.items():
        job = Job.from_values({"preset": name})
        assert job.judge.chosen() == (preset.model, preset.pretrained, preset.threshold)
    assert Job.from_values({"threshold": 0.1}).judge.chosen()[2] == 0.1


def test_an_output_url_has_a_folder_of_its_name_here():
    output = Job.from_values({"output": "s3://bucket/crawls/mine/"}).output
    assert (output.url, output.folder.name) == ("s3://bucket/crawls/mine", "mine")
    assert Job.from_values({"output": "mine"}).output.url is None


def test_a_folder_that_is_brought_to_a_url_is_told_from_one_that_is_not():
    url, folder = (Job.from_values({"output": each}) for each in ("s3://me:word@b/ds", "ds"))
    for before, now, said in ((url, folder, "to the URL"), (folder, url, "to a folder")):
        with pytest.raises(ConfigError, match=f"use the same settings: output {said}") as refused:
            now.require_same(now.differences(before), "ds")
        assert "word" not in str(refused.value)


def test_an_output_that_no_shell_has_seen_may_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_job({}, {"CAH_OUTPUT": "~/x"}).output.folder == tmp_path / "x"
    assert Job.from_values({"output": "a~b"}).output.folder == Path.cwd() / "a~b"


@given(st.sampled_from([setting.name for setting in settings()]), st.text(max_size=20))
def test_any_text_is_read_or_refused_by_a_sentence(name, text):
    try:
        job = Job.from_values({name: text})
    except ConfigError as error:
        assert name in str(error) or "threshold" in str(error)
    else:
        assert Job.from_values(job.values()) == job


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://b/ds/", "s3://b/ds"),
        ("S3://b/ds", "s3://b/ds"),
        (" s3://B/ds// ", "s3://B/ds"),
        ("HF://datasets/ada/set/", "hf://datasets/ada/set"),
        ("file:///data/ds/", "file:///data/ds"),
        ("gdrive://Folder/Ds", "gdrive://Folder/Ds"),
    ],
)
def test_an_output_url_is_the_same_however_it_is_spelled(given, url):
    job, same = (Job.from_values({"output": each}) for each in (given, url))
    assert job.output.url == url
    assert job.output.folder == same.output.folder
    assert not job.differences(same)


def test_a_contact_may_change_between_launches():
    one, other = (Job.from_values({"contact": f"{name}@site.org"}) for name in "ab")
    assert not one.differences(other)


def test_a_whole_number_is_the_same_setting_with_and_without_a_fraction():
    """A script writes 1, and the command line reads 1.0."""
    jobs = [Job.from_values({"threshold": each}) for each in (1, 1.0, "1")]
    assert len({describe_job(job).digest for job in jobs}) == 1
