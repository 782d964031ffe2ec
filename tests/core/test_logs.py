"""Log lines are kept for the run, not shown; what the user should know is said as a sentence."""

import logging
import warnings

import pytest

from cahlib.core import logs


@pytest.fixture(autouse=True)
def _before_dask(monkeypatch):
    """Let Dask's loggers be as they are before it is imported, whatever ran in this process."""
    for name in ("distributed", "distributed.client"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)


def test_lines_of_libraries_go_to_the_runs_log_and_our_warnings_are_said(tmp_path, capsys):
    said = []
    with logs.log_to_run(tmp_path, said.append):
        logging.getLogger("distributed.client").warning("reconnecting")
        logging.getLogger("cahlib.engine.remote").warning("tcp://x does not answer")
        logging.getLogger("cahlib.run.open_run").warning("The ledger of %s is made anew.", "x")
        logging.getLogger("cahlib.run.open_run").info("nothing of note")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)  # as pytest has put its own in its place
            logging.captureWarnings(True)
            warnings.warn("a table of versions", stacklevel=1)
    logging.getLogger("cahlib.run.open_run").info("after it")
    kept = (tmp_path / logs.LOG_FILE).read_text()
    for each in ("distributed.client: reconnecting", "does not answer", "a table of versions"):
        assert each in kept
    assert said == ["cah: The ledger of x is made anew."]
    assert "nothing of note" not in kept and capsys.readouterr() == ("", "")


def test_a_folder_that_is_not_there_is_neither_made_nor_missed(tmp_path, capsys):
    with logs.log_to_run(tmp_path / "run", print):
        logging.getLogger("distributed").error("lost")
    assert not (tmp_path / "run").exists() and capsys.readouterr() == ("", "")
