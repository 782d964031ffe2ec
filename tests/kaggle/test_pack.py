"""What is pushed: the notebook that cahlib ships, and what comes with it."""

import ast
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from cahlib.core import status
from cahlib.core.config import Job, Output
from cahlib.core.errors import ConfigError
from cahlib.core.secret_store import run_name
from cahlib.dataset.write.duplicate_index import load_duplicate_index
from cahlib.dataset.write.shard_writer import ScoredParcel, write_shard
from cahlib.kaggle import pack
from cahlib.kaggle.in_kernel import receive_settings, stop_when_full, working_hours
from cahlib.ledger.local import LocalLedger
from tests.world import judged as world

NOTEBOOK = Path(__file__).parent.parent.parent / "gpucah.ipynb"
JOB = Job.from_values({"nickname": "ada's", "crawl": "CC-MAIN-2024-10", "languages": "de,fr"})


def test_the_shipped_notebook_takes_the_settings():
    values = pack.kernel_settings(JOB, hours=9, own_swarm=False, ticket=True)
    told = pack.build_notebook(NOTEBOOK, values, hours=9, session="one")
    before = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    changed = [cell for cell in told["cells"] if cell not in before]
    assert [cell["metadata"]["tags"] for cell in changed] == [["install"], ["parameters"]]
    ast.parse(changed[1]["source"])


def test_settings_come_to_the_kernel_as_they_are(tmp_path):
    values = pack.kernel_settings(JOB, hours=9, own_swarm=False, ticket=False)
    assert values["nickname"] == "ada's" and values["output"] == pack.KERNEL_OUTPUT
    values["output"] = str(tmp_path / "dataset")
    settings = receive_settings(values, session="one", hours=9, inputs=tmp_path)
    job = Job.from_values(settings)
    assert (job.crawl, job.nickname) == (JOB.crawl, JOB.nickname)
    elapsed = (time.time() - psutil.Process().create_time()) / 3600
    assert job.place.hours == pytest.approx(8.75 - elapsed, abs=0.01) and not job.place.engine


def test_a_ticket_that_did_not_come_is_named(tmp_path):
    values = pack.kernel_settings(JOB, hours=9, own_swarm=False, ticket=True)
    with pytest.raises(ConfigError, match="ticket.json is not among the inputs"):
        receive_settings(values, session="one", hours=9, inputs=tmp_path)


@pytest.mark.parametrize("kind", ["keep", "same", "near"])
def test_the_kernel_knows_the_images_of_earlier_sessions(tmp_path, kind):
    here, there = (
        Output(output=str(tmp_path / name), duplicates=kind) for name in ("here", "there")
    )
    made = [world.judged(number) for number in range(3)]
    manifests = [
        write_shard(
            here.folder, images,
            ScoredParcel(
                parcel=world.parcel(name, images=len(images)), stats=world.stats_of(images)
            ),
            spec=world.SPEC, again=lambda judged: None,
        )
        for name, images in (("full", made), ("empty", []))
    ]  # fmt: skip
    (here.folder / "run").mkdir()
    LocalLedger(here.folder / "run/ledger.sqlite").close()
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    pack.write_inputs(inputs, here, None)
    receive_settings({"output": there.output}, session="one", hours=9, inputs=inputs)
    known = load_duplicate_index(there, [each.shard for each in manifests], seen=lambda uid: False)
    assert [known.find_duplicate(each) is not None for each in made] == [kind != "keep"] * 3
    brought = {path.name for path in there.folder.rglob("*.*")}
    whole = {"ledger.sqlite", "full.json", "empty.json"}
    assert brought == whole | ({"metadata_full.parquet"} if kind != "keep" else set())


def test_servers_that_a_kernel_makes_have_the_name_that_its_session_was_given(tmp_path):
    values = {"swarm": 2, "output": str(tmp_path / "dataset")}
    receive_settings(values, session="cahlib-inputs-0123abcd", hours=9, inputs=tmp_path / "none")
    assert run_name(tmp_path / "dataset/run/swarm") == "0123abcd"
    receive_settings(values | {"swarm": 0, "output": str(tmp_path / "b")}, session="a-b", hours=9)
    assert not (tmp_path / "b/run/swarm").exists()


def test_a_run_ends_before_its_output_is_more_than_kaggle_keeps(tmp_path):
    home = tmp_path / "working/dataset"
    (home / "run").mkdir(parents=True)
    (home / "images.tar").write_bytes(bytes(2000))
    with subprocess.Popen(["sleep", "1000"]) as process:
        (home / "run" / "live.json").write_text(json.dumps(status.process_identity(process.pid)))
        try:
            assert not stop_when_full(home, most=9000) and process.poll() is None
            assert stop_when_full(home, most=2000)
        except BaseException:
            process.kill()
            raise
        assert process.wait() == -signal.SIGTERM
        assert stop_when_full(home, most=2000)  # nobody is there any more


def test_a_folder_that_vanishes_meanwhile_does_not_end_the_watch(tmp_path, monkeypatch):
    scan, home = os.scandir, tmp_path / "dataset"
    (home / "begun").mkdir(parents=True)

    def vanishing(folder):
        if Path(folder).name == "begun":
            Path(folder).rmdir()
        return scan(folder)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", vanishing)
        assert not stop_when_full(home, most=9000)
    assert not (home / "begun").exists()


def test_a_session_ends_a_quarter_of_an_hour_early_or_less():
    assert working_hours(9) == 8.75
    assert working_hours(0.04) == pytest.approx(0.03)


@pytest.mark.parametrize("cells", [[], [["parameters"], ["parameters"]]])
def test_a_notebook_without_its_place_for_settings_is_refused(tmp_path, cells):
    path = tmp_path / "any.ipynb"
    made = [{"cell_type": "code", "metadata": {"tags": tags}, "source": ""} for tags in cells]
    path.write_text(json.dumps({"cells": made}))
    with pytest.raises(ConfigError, match="tagged 'parameters'; it must have one"):
        pack.build_notebook(path, {}, hours=9, session="one")
