"""Settings that were renamed are still read by their former names, with one line saying so."""

import json

import pytest

from cahlib import notebook
from cahlib.commands import cli
from cahlib.core.config import FORMER_NAMES, Job, settings
from cahlib.core.fingerprint import json_checksum
from cahlib.run.environment import build_job

SAID = "patience is now called max_failures; use the new name."


def test_every_former_name_has_a_present_one_and_is_no_setting():
    names = {each.name for each in settings()}
    assert {*FORMER_NAMES.values()} <= names and not FORMER_NAMES.keys() & names


def test_variables_are_read(caplog):
    job = build_job({}, {"CAH_PATIENCE": "7", "CAH_LEFT_ALONE": "a.com,b.com"})
    assert (job.download.max_failures, job.download.skipped_domains) == (7, ("a.com", "b.com"))
    assert caplog.messages.count(SAID) == 1


@pytest.mark.parametrize(
    ("options", "environment", "number"),
    [
        ({"patience": "5"}, {"CAH_MAX_FAILURES": "7"}, 5),
        ({"max_failures": "5"}, {"CAH_PATIENCE": "7"}, 5),
        ({"patience": "5", "max_failures": "6"}, {}, 6),
    ],
)
def test_an_option_is_stronger_than_a_variable_and_a_present_name_than_a_former(
    options, environment, number
):
    assert build_job(options, environment).download.max_failures == number


def test_options_are_read_and_not_in_the_help(capsys, monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    chosen = cli._parser().parse_args(["run", "--patience", "3", "--left-alone=c.com"])
    job = cli._job(chosen)
    assert (job.download.max_failures, job.download.skipped_domains) == (3, ("c.com",))
    assert caplog.messages.count(SAID) == 1
    with pytest.raises(SystemExit):
        cli.main(["run", "--help-all"])
    shown = capsys.readouterr().out
    assert "--max-failures" in shown and "--patience" not in shown and "--left-alone" not in shown


def test_a_stored_job_is_read_and_stored_by_the_present_names(tmp_path, caplog):
    values = Job().values() | {"patience": 4, "left_alone": ["d.com"]}
    del values["max_failures"], values["skipped_domains"]
    path = tmp_path / "job.json"
    path.write_text(json.dumps(values | {"sha256": json_checksum(values)}))
    job = Job.stored(path)
    assert (job.download.max_failures, job.download.skipped_domains) == (4, ("d.com",))
    assert not caplog.messages  # nobody can change it but the next run, which does
    job.store(path)
    assert "max_failures" in path.read_text() and "patience" not in path.read_text()


def test_a_notebooks_settings_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")  # no widgets are shown
    from cahlib.notebook.panel import Panel
    from cahlib.notebook.runtime import detect_runtime

    panel = Panel(detect_runtime(), {}, notebook.given({"settings": {"patience": 9}}))
    assert panel.form.fields["max_failures"].text == "9"
    panel.close()
