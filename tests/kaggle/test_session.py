"""A session's ways to end, each with the real `kaggle` package and servers at a stand-in cloud.

The servers are only listed, for nothing runs on them here; tests/acceptance has the whole way.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from cahlib.core.errors import CahError, ConfigError, RunError
from cahlib.kaggle.limits import hours_within_quota
from cahlib.kaggle.service import GpuQuota, KaggleAccount
from cahlib.kaggle.session import (
    SessionNote,
    check_session,
    describe_interruption,
)
from cahlib.swarm import wheel
from tests.world import cloud as clouds
from tests.world import kaggle
from tests.world.jobs import until
from tests.world.kaggle_sessions import HCLOUD, OUTPUTS, Launch


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return wheel.build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(autouse=True)
def _one_wheel(built, monkeypatch):
    """Build the wheel once: it is the same for each launch."""
    monkeypatch.setattr(wheel, "build_wheel", lambda folder: shutil.copy(built, folder))


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLE_API_TOKEN", kaggle.TOKEN)
    with kaggle.serve(kaggle.Service()) as service:
        yield service


@pytest.fixture
def cloud():
    with clouds.serve(clouds.Cloud({HCLOUD: clouds.Account()})) as cloud:
        cloud.stranger(HCLOUD)
        yield cloud


@pytest.fixture
def launch(cloud, tmp_path):
    launch = Launch(cloud, tmp_path)
    yield launch
    assert launch.servers == ["stranger"]


def completes(request):
    states = ["QUEUED", "RUNNING", "COMPLETE"]
    outputs = OUTPUTS | {"dataset/run/session": request["datasetDataSources"][0][4:].encode()}
    return kaggle.Kernel(request, states, log=["shards 1/2\n"], outputs=outputs)


def test_a_kernel_is_pushed_followed_and_fetched(service, launch):
    service.run = completes
    made = []
    service.before = lambda name: name == "SaveKernel" and made.append(launch.servers)
    folder = launch()
    assert len(made[0]) == 3  # two are ours
    # noted as in use, or else every command would call them forgotten
    assert [call.split("/")[1] for call in launch.cloud.calls if call.startswith("PUT")] == [
        "servers"
    ]
    (request,) = service.pushed
    assert (request["slug"], request["isPrivate"]) == ("ada/cahlib", True)
    assert (request["enableGpu"], request["enableInternet"]) == (True, True)
    assert (request["machineShape"], request["sessionTimeoutSeconds"]) == ("NvidiaTeslaT4", 32400)
    ((name, files),) = service.datasets.items()
    assert request["datasetDataSources"] == [name] == service.removed
    assert service.private[name] is True
    assert {"ticket.json", "pins.txt"} < set(files) and len(files) == 3
    assert (folder / "metadata/metadata_8.parquet").read_bytes() == b"8"
    assert not (folder / "run/parcels").exists() and not (folder.parent / "outside").exists()
    for word in (
        "queued",
        "running",
        "complete",
        "| shards 1/2",
        "11 files",
        "all servers are deleted",
    ):
        assert word in launch.text


def test_the_last_lines_of_the_log_are_shown_though_the_kernel_is_over(service, launch):
    service.run = completes
    service.before = lambda name: name == "log" and until(lambda: ": complete" in launch.text)
    launch()
    assert "| shards 1/2" in launch.text


def test_a_shard_that_is_here_stays_as_it_is(service, launch):
    """Its metadata may have gone to the kernel and come back; its owner may have purged it."""
    service.run = completes
    manifest, table = (launch.folder / "dataset" / name for name in ("shards/0.json", "metadata"))
    for path in (manifest, table / "metadata_0.parquet"):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    launch()
    assert "9 files were fetched" in launch.text and (table / "metadata_1.parquet").exists()
    assert manifest.read_text() == (table / "metadata_0.parquet").read_text() == "mine"


def test_what_is_pushed_holds_no_token(service, launch):
    service.run = completes
    launch()
    sent = b"".join(body for body in service.received if b"IntrospectToken" not in body)
    assert HCLOUD.encode() not in sent
    pushed = json.dumps(service.pushed).encode()
    files = b"".join(data for each in service.datasets.values() for data in each.values())
    for secret in (HCLOUD, kaggle.TOKEN):
        assert secret.encode() not in pushed + files
    assert b"PRIVATE KEY" in files  # the ticket's own


def test_a_token_in_a_setting_is_not_pushed(service, launch):
    with pytest.raises(ConfigError, match="nothing was pushed: gpucah.ipynb contains"):
        launch(nickname=f"ada {HCLOUD}")
    assert not service.pushed and not service.datasets
    assert not any(HCLOUD.encode() in body for body in service.received)
    assert "POST /servers" not in launch.cloud.calls


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        ("Maximum batch GPU session count of 2 reached.", "Other kernels of yours are running"),
        ("Please verify your phone number to use GPU", "verified phone number; verify yours at"),
        ("You have exhausted your weekly GPU quota", "GPU hours are used up"),
    ],
)
def test_a_push_that_is_refused_says_why(service, launch, refusal, sentence):
    service.refusal = refusal
    with pytest.raises(RunError, match=sentence):
        launch()
    assert len(service.removed) == 1 and "all servers are deleted" in launch.text
    service.refusal, service.run = "", completes
    launch()  # nothing is left to fetch from the one that was refused


def test_a_network_that_blinks_while_files_are_brought_costs_no_session(service, launch, capfd):
    service.run = completes
    service.before = lambda name: setattr(
        service, "lost", name == "CreateDataset" and service.calls.count(name) == 1
    )
    launch()
    shown = capfd.readouterr()
    assert (
        service.calls.count("CreateDataset") == 2 and "Request failed" not in shown.out + shown.err
    )


def test_two_kernels_that_work_are_seen_before_anything_is_made(service, launch):
    service.others = {"ada/first": "RUNNING", "ada/on-a-cpu": "RUNNING", "ada/older": "COMPLETE"}
    service.run = completes
    launch()
    service.others |= {"ada/second": "QUEUED"}
    before = len(launch.cloud.calls)
    with pytest.raises(ConfigError, match="2 GPU kernels .* ada/first, ada/second are running"):
        launch(output=str(launch.folder / "other"))
    assert "POST /servers" not in launch.cloud.calls[before:] and len(service.pushed) == 1


def test_what_a_session_may_have_is_said_before_the_question(service, launch):
    session, said = launch.session(), []
    service.hours = (30, 25)
    assert check_session(session, KaggleAccount(), report=said.append).hours == 5
    assert said == ["5.0 GPU hours are left this week; the session takes 5."]
    service.hours = (30, 30)
    with pytest.raises(ConfigError, match="quota is used up"):
        check_session(session, KaggleAccount(), report=said.append)
    pushed(launch)  # what is there is fetched first
    assert check_session(session, KaggleAccount(), report=said.append) == session
    SessionNote.of(session.job).forget()
    service.kernel = kaggle.Kernel({}, ["RUNNING"])
    with pytest.raises(ConfigError, match="is running for another dataset"):
        check_session(session, KaggleAccount(), report=said.append)


@pytest.mark.parametrize(
    ("settings", "own", "sentence"),
    [
        ({"swarm": 2}, False, "ends by itself within minutes of losing its servers"),
        ({"swarm": 2}, True, r"cost money, .*`cah swarm down --run 0123abcd` with HCLOUD_TOKEN"),
        (
            {"swarm": 0},
            False,
            "but no money, .*cancel it on its page, https://www.kaggle.com/code/ada/cahlib",
        ),
    ],
)
def test_who_leaves_is_told_what_goes_on(launch, settings, own, sentence):
    session = launch.session(own_swarm=own, **settings)
    assert describe_interruption(session, "ada") == "interrupted; no kernel was started."
    SessionNote.of(session.job).path.parent.mkdir(parents=True)
    SessionNote.of(session.job).write(inputs="cahlib-inputs-0123abcd", pushed=True)
    assert re.search(sentence, describe_interruption(session, "ada"))


def test_a_quota_that_is_used_up_is_seen_before_anything_is_made(service, launch):
    service.hours = (30, 29.9)
    with pytest.raises(ConfigError, match="used up .* renewed on Saturday, 28 November"):
        launch()
    assert "POST /servers" not in launch.cloud.calls and not service.datasets


@pytest.mark.parametrize("trouble", ["quota", "GetKernelSessionStatus", "ListKernelSessionOutput"])
def test_servers_that_a_crash_left_go_even_if_the_next_launch_cannot_begin(
    service, launch, trouble
):
    launch.swarm(launch.job()).up(9)
    assert len(launch.servers) == 3
    if trouble == "quota":
        service.hours = (30, 29.9)
    else:
        pushed(launch)
        service.kernel = kaggle.Kernel({}, ["COMPLETE"])
        service.before = lambda name: setattr(service, "lost", name == trouble)
    with pytest.raises(CahError):
        launch()
    assert launch.servers == ["stranger"] and "all servers are deleted" in launch.text


def pushed(launch):
    """Note that an earlier launch pushed a kernel, and lost sight of it."""
    note = launch.folder / "dataset/run/kaggle.json"
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"inputs": "cahlib-inputs-0", "pushed": True}))


def test_a_kernel_that_was_deleted_at_kaggle_is_not_waited_for(service, launch):
    pushed(launch)
    service.run = completes
    launch()
    assert len(service.pushed) == 1 and "the output of an earlier session" not in launch.text


@pytest.mark.parametrize("left", [(30, 26), None])
def test_the_session_fits_the_quota(service, launch, left):
    service.run, service.hours = completes, left
    launch()
    expected = 4 if left else 9
    assert service.pushed[0]["sessionTimeoutSeconds"] == expected * 3600
    assert f"hours={expected}" in service.pushed[0]["text"]


def test_hours_that_a_quota_allows():
    assert hours_within_quota(9, GpuQuota(hours=30, renewed=None)) == 9
    assert hours_within_quota(9, GpuQuota(hours=2.5, renewed=None)) == 2.5
    assert hours_within_quota(0.02, GpuQuota(hours=0.1, renewed=None)) == 0.02


@pytest.mark.parametrize("token", ["", "another"])
def test_without_credentials_one_sentence_says_what_to_do(service, monkeypatch, token):
    monkeypatch.delenv("KAGGLE_API_TOKEN") if not token else monkeypatch.setenv(
        "KAGGLE_API_TOKEN", token
    )
    with pytest.raises(ConfigError, match="create an API token at https://www.kaggle.com/settings"):
        KaggleAccount()


def test_a_key_that_lies_in_a_file_is_a_secret_too(service, monkeypatch, tmp_path):
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))  # read when the package is imported
    (tmp_path / "kaggle.json").write_text(json.dumps({"username": "ada", "key": "key-of-ada"}))
    script = "from cahlib.kaggle.service import KaggleAccount; print(KaggleAccount().secrets)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout == "['key-of-ada']\n", ran.stderr


def test_a_kernel_that_fails_is_told_and_its_shards_are_fetched(service, launch):
    def fails(request):
        return kaggle.Kernel(request, ["RUNNING", "ERROR"], outputs=dict(OUTPUTS), why="no GPU")

    service.run = fails
    with pytest.raises(RunError, match=r"the kernel ended with ERROR \(no GPU\)"):
        launch()
    assert (launch.folder / "dataset/shards/0.json").exists()


def test_a_network_that_goes_away_is_waited_for(service, launch):
    service.run = completes
    looks = []

    def cut(name):
        looks.append(name)
        service.lost = looks.count("GetKernelSessionStatus") in (3, 4, 5)

    service.before = cut
    launch()
    assert launch.text.count("Trying again") == 1 and "11 files were fetched" in launch.text


def test_a_network_that_is_lost_for_good_leaves_no_server_and_the_next_launch_fetches(
    service, launch
):
    service.run = completes
    service.before = lambda name: setattr(service, "lost", name == "ListKernelSessionOutput")
    with pytest.raises(RunError, match="cannot be reached"):
        launch()
    assert launch.servers == ["stranger"]
    service.before = lambda name: None
    service.lost = False
    launch()
    assert "fetching the output of an earlier session" in launch.text


@pytest.mark.parametrize("call", ["CreateDataset", "SaveKernel", "GetKernelSessionStatus"])
def test_ctrl_c_at_any_time_leaves_no_server(service, launch, call):
    service.run = lambda request: kaggle.Kernel(request, ["RUNNING"])

    def press(name):
        if name == call and len(launch.servers) == 3:
            signal.raise_signal(signal.SIGINT) if _main() else _interrupt()

    service.before = press
    with pytest.raises(KeyboardInterrupt):
        launch()
    assert launch.servers == ["stranger"] and "all servers are deleted" in launch.text


def test_a_second_launch_on_the_folder_leaves_the_servers_of_the_first(service, launch):
    service.run = completes
    refused, servers = [], []

    def second(name):
        if name == "SaveKernel" and not servers:
            servers.append(launch.servers)
            try:
                launch()
            except ConfigError as error:
                refused.append(str(error))
            servers.append(launch.servers)

    service.before = second
    launch()
    assert ["another command is writing to" in each for each in refused] == [True]
    assert servers[0] == servers[1] and len(servers[0]) == 3 and len(service.pushed) == 1


def _main():
    return threading.current_thread() is threading.main_thread()


def _interrupt():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def test_a_kernel_that_runs_is_followed_by_the_next_launch(service, launch):
    service.run = completes
    launch()
    pushed(launch)
    service.kernel.states[:] = ["RUNNING", "RUNNING", "COMPLETE"]
    service.kernel.outputs["dataset/run/session"] = b"cahlib-inputs-0"
    launch()
    assert len(service.pushed) == 1 and "is running; following it" in launch.text
    service.kernel.states[:] = ["RUNNING"]
    with pytest.raises(ConfigError, match="is running for another dataset"):
        launch()


@pytest.mark.parametrize("of", ["another", ""])
def test_what_a_kernel_left_of_another_session_is_not_fetched(service, launch, of):
    """The line is cut while pushing, and the push never arrived: the name's last kernel is old."""
    left = {"dataset/run/ledger.sqlite": b"of another dataset", "dataset/shards/a.json": b"{}"}
    left |= {"dataset/run/session": of.encode()} if of else {}
    service.kernel = kaggle.Kernel({}, ["COMPLETE"], outputs=left)
    service.before = lambda name: setattr(service, "lost", name == "SaveKernel")
    with pytest.raises(RunError, match="cannot be reached"):
        launch()
    service.before, service.lost, service.run = lambda name: None, False, completes
    folder = launch()
    assert not (folder / "shards/a.json").exists()
    assert (folder / "run/ledger.sqlite").read_bytes() == b""
    assert "the output of an earlier session" not in launch.text


def test_what_a_kernel_makes_for_another_session_is_not_fetched(service, launch):
    pushed(launch)
    left = {"dataset/run/session": b"another", "dataset/shards/a.json": b"{}"}
    service.kernel = kaggle.Kernel({}, ["RUNNING", "COMPLETE"], outputs=left)
    with pytest.raises(RunError, match="left no output of a session for .*; nothing was fetched"):
        launch()
    assert not (launch.folder / "dataset/shards").exists()
    service.run = completes
    assert (launch() / "shards/0.json").exists() and len(service.pushed) == 1


def test_another_jobs_dataset_is_refused(service, launch):
    service.run = completes
    launch()
    with pytest.raises(ConfigError, match="the same settings: min_side"):
        launch(min_side=100)
