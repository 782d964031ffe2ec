"""The old protocol, walked through by a client that was written from its description alone."""

import json
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from cahlib.tracker import admin
from cahlib.tracker.app import create_app
from cahlib.tracker.legacy import bloom
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.jobs import LIMIT, until
from tests.world.trackers import ask, serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)


class ZeroJobError(Exception):
    """403"""


class WorkerTimedOutError(Exception):
    """404"""


class ServerError(Exception):
    """any other status"""


ERRORS = {400: ValueError, 403: ZeroJobError, 404: WorkerTimedOutError}


class Client:
    """What a worker of 2021 says, and makes of the answers."""

    def __init__(self, base, nickname="", type=""):
        self.base, self.type = base, type
        if type:
            query = urllib.parse.urlencode({"nickname": nickname, "type": type})
            said = json.loads(self.get(f"api/new?{query}"))
            self.name, self.token = said["display_name"], said["token"]
            self.upload_address = said["upload_address"]

    def get(self, path):
        return self._open(urllib.request.Request(f"{self.base}/{path}"))

    def post(self, path, **values):
        headers = {"Content-Type": "application/json"}
        data = json.dumps(values).encode()
        return self._open(urllib.request.Request(f"{self.base}/{path}", data, headers))

    def say(self, path, **more):
        return self.post(path, token=self.token, type=self.type, **more)

    def send_file(self, path, key, lines):
        rows = "".join(f"{line}\n" for line in lines)
        body = (
            f'--xyz\r\nContent-Disposition: form-data; name="key"\r\n\r\n{key}\r\n'
            '--xyz\r\nContent-Disposition: form-data; name="file"; filename="hash.txt"\r\n'
            f"Content-Type: text/plain\r\n\r\n{rows}\r\n--xyz--\r\n"
        )
        headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
        return self._open(urllib.request.Request(f"{self.base}/{path}", body.encode(), headers))

    def _open(self, request):
        try:
            with urllib.request.urlopen(request, timeout=LIMIT) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            assert error.headers.get_content_type() == "text/plain"
            raise ERRORS.get(error.code, ServerError)(error.read().decode()) from None


@pytest.fixture
def tracker(url, database, fill, clock, tmp_path):
    fill(3)
    folder = tmp_path / "filters"
    folder.mkdir()
    bloom.create_filter(folder / "main.bloom", items=10_000, error=1e-6)
    rules = TrackerRules(legacy_upload="rsync://host/parcels", max_failures=3)
    settings = TrackerSettings(database=url, rules=rules, limits=ANY, filters=str(folder), fresh=0)
    with serving(create_app(settings, clock=clock)) as address:
        yield address


def test_a_hybrid_worker_from_hello_to_goodbye(tracker, clock):
    worker = Client(tracker, "ann", "HYBRID")
    assert worker.name and worker.token and worker.upload_address == "rsync://host/parcels"
    assert worker.get("api/getUploadAddress?type=HYBRID") == "rsync://host/parcels"
    assert int(worker.get("api/jobCount?type=HYBRID")) == 6
    job = json.loads(worker.say("api/newJob"))
    assert job["url"].startswith("https://") and job["url"].endswith(".wat.gz")
    assert int(job["end_id"]) - int(job["start_id"]) == 999_999
    assert job["shard"] in (0, 1)
    assert worker.say("api/updateProgress", progress="Downloading images") == "success"
    assert "True" in worker.say("api/validateWorker")

    again = json.loads(worker.say("api/newJob"))  # gives the first one back
    assert (again["start_id"], again["shard"]) == (job["start_id"], 1)
    about = json.loads(worker.get(f"worker/HYBRID/{worker.name}/data"))
    assert about["shard_number"] == again["number"] and about["progress"] == "Downloading images"
    assert (about["display_name"], about["user_nickname"]) == (worker.name, "ann")
    assert about["type"] == "HYBRID" and about["first_seen"] <= about["last_seen"]

    assert worker.say("api/markAsDone", count=1234) == "success"
    with pytest.raises(ZeroJobError):
        worker.say("api/markAsDone", count=1234)
    data = json.loads(worker.get("data"))
    assert data["total_pairs_scraped"] == 1234 and data["total_connected_workers"] == 1
    assert data["completion_float"] == pytest.approx(100 / 6)
    assert data["completion_str"] == "1 / 6"
    assert isinstance(data["eta"], str)

    other = json.loads(worker.say("api/newJob"))
    assert other["number"] == 2  # what was given back comes last
    assert worker.say("api/bye") == "success"
    assert "False" in worker.say("api/validateWorker")
    with pytest.raises(WorkerTimedOutError):
        worker.say("api/newJob")
    assert json.loads(Client(tracker, "bob", "HYBRID").say("api/newJob"))["number"] == 2


def test_a_cpu_and_a_gpu_worker_share_a_job(tracker):
    cpu, gpu = Client(tracker, "carl", "CPU"), Client(tracker, "gus", "GPU")
    assert int(gpu.get("api/jobCount?type=GPU")) == 0
    with pytest.raises(ZeroJobError):
        gpu.say("api/newJob")
    first = json.loads(cpu.say("api/newJob"))
    assert cpu.say("api/markAsDone", url="rsync carl-0") == "success"
    assert int(gpu.get("api/jobCount?type=GPU")) == 1
    job = json.loads(gpu.say("api/newJob"))
    assert (job["url"], job["number"]) == ("rsync carl-0", first["number"])
    assert job["start_id"] == first["start_id"]
    for one in (gpu, Client(tracker, "gil", "GPU")):
        assert json.loads(one.say("api/newJob"))["number"] == first["number"]
        assert one.say("api/gpuInvalidDownload") == "success"
    with pytest.raises(ZeroJobError):
        gpu.say("api/gpuInvalidDownload")
    assert int(cpu.get("api/jobCount?type=CPU")) == 6
    second = Client(tracker, "cleo", "CPU")
    while json.loads(second.say("api/newJob"))["number"] != first["number"]:
        second.say("api/markAsDone", url="http://host/other.tar")  # what failed comes last
    second.say("api/markAsDone", url="http://host/0.tar")
    assert int(gpu.get("api/jobCount?type=GPU")) == 6
    assert json.loads(gpu.say("api/newJob"))["url"] == "http://host/0.tar"
    assert gpu.say("api/markAsDone", count=7) == "success"
    assert re.findall("<bdi>(.*?)</bdi>", gpu.get("leaderboard")) == ["gus"]
    assert re.findall("<bdi>(.*?)</bdi>", gpu.get("leaderboard?by=scraped")) == ["cleo"]


def test_a_whole_wat_file(tracker):
    cpu, other = Client(tracker, "carl", "CPU"), Client(tracker, "cleo", "CPU")
    url = cpu.get("custom/get-cpu-wat")
    assert other.get("custom/get-cpu-wat") != url
    found = json.loads(cpu.post("custom/lookup-wat", url=url))
    assert found["status"] == "success"
    numbers = [number for number, _ in found["shards"]]
    assert [job["shard"] for _, job in found["shards"]] == [0, 1]
    assert {job["url"] for _, job in found["shards"]} == {url}
    assert len({(job["start_id"], job["end_id"]) for _, job in found["shards"]}) == 1
    urls = {str(number): f"rsync carl-{number}" for number in numbers}
    done = {"urls": urls, "shards": numbers, "nickname": "carl"}
    refused = json.loads(cpu.post("custom/markasdone-cpu", **done, token="guessed"))
    assert refused["status"] == "failed" and refused["detail"]
    said = json.loads(cpu.post("custom/markasdone-cpu", **done, token=cpu.token))
    assert said == {"status": "success", "completed": 2}
    assert json.loads(cpu.post("custom/markasdone-cpu", **done, token=cpu.token))["status"] == (
        "failed"
    )
    assert int(cpu.get("api/jobCount?type=GPU")) == 2
    gone = json.loads(cpu.post("custom/lookup-wat", url="https://other.example/x.wat.gz"))
    assert gone["status"] == "failed" and gone["detail"]


def bring(worker, numbers):
    urls = {str(number): f"rsync {number}" for number in numbers}
    whole = {"urls": urls, "shards": list(numbers), "nickname": "x", "token": worker.token}
    return json.loads(worker.post("custom/markasdone-cpu", **whole))


def test_nobody_brings_what_was_never_offered(tracker):
    hybrid, cpu = Client(tracker, "eve", "HYBRID"), Client(tracker, "carl", "CPU")
    url = cpu.get("custom/get-cpu-wat")
    offered = json.loads(cpu.post("custom/lookup-wat", url=url))["shards"]
    numbers = [number for number, _ in offered]
    refused = bring(hybrid, numbers)
    assert refused["status"] == "failed" and "CPU" in refused["detail"]
    assert bring(cpu, range(6)) == {"status": "success", "completed": 2}
    assert int(cpu.get("api/jobCount?type=CPU")) == 4


FOR_A_SHELL = [
    "",
    "x.tar",
    "rsync x; touch pwned #",
    "rsync $(touch pwned)",
    "rsync `touch pwned`",
    "rsync a&touch pwned",
    "rsync x y",
    "rsync x\nreboot",
    "rsync ../../etc/passwd",
    "rsync -e",
    "http://host/a.tar;reboot",
    "http://host/a.tar&reboot",
    "https://host/$(reboot)",
    "https://-e",
    "ftp://host/a.tar",
    "http://127.0.0.1/a.tar",
    "http://10.0.0.7:8000/a.tar",
    "http://169.254.169.254/latest/",
    "http://2130706433/a.tar",
    "http://127.1/a.tar",
    "http://0x7f.1/a.tar",
    "http://localhost/a.tar",
    "http://nas.local./a.tar",
    "http://someone@192.168.0.1/a.tar",
]


def test_a_whole_wat_file_that_was_leased_and_given_back_is_offered_again(tracker):
    hybrid, cpu = Client(tracker, "ann", "HYBRID"), Client(tracker, "carl", "CPU")
    first = json.loads(hybrid.say("api/newJob"))
    hybrid.say("api/bye")
    urls = [cpu.get("custom/get-cpu-wat") for _ in range(3)]
    assert len(set(urls)) == 3 and urls[-1] == first["url"]
    with pytest.raises(ZeroJobError):
        cpu.get("custom/get-cpu-wat")


def test_the_old_protocol_can_be_switched_off(url, database):
    settings = TrackerSettings(
        database=url, limits=ANY, legacy=False, rules=TrackerRules(legacy_upload="rsync x")
    )
    with serving(create_app(settings)) as tracker:
        for path in ("/api/new?nickname=ann&type=HYBRID", "/data", "/custom/get-cpu-wat"):
            assert ask(tracker, path).status == 404
        assert ask(tracker, "/v1/state").status == 200


def test_what_old_gpu_workers_would_hand_to_a_shell_is_refused(tracker):
    cpu, gpu = Client(tracker, "eve", "CPU"), Client(tracker, "gus", "GPU")
    cpu.say("api/newJob")
    wat = cpu.get("custom/get-cpu-wat")
    found = json.loads(cpu.post("custom/lookup-wat", url=wat))
    numbers = [number for number, _ in found["shards"]]
    for where in FOR_A_SHELL:
        with pytest.raises(ValueError, match="rsync NAME|public host"):
            cpu.say("api/markAsDone", url=where)
        whole = {"urls": {str(number): where for number in numbers}, "shards": numbers}
        said = json.loads(
            cpu.post("custom/markasdone-cpu", **whole, nickname="eve", token=cpu.token)
        )
        assert (where, said["status"]) == (where, "failed") and "url: " in said["detail"]
    with pytest.raises(ZeroJobError):
        gpu.say("api/newJob")


def test_an_old_gpu_worker_gets_the_name_or_the_address_that_was_brought(tracker):
    cpu, gpu = Client(tracker, "carl", "CPU"), Client(tracker, "gus", "GPU")
    for where in ("rsync 8f6e-1.2_a", "https://host:8443/~ann/p.tar.gz?token=a%20b+c"):
        cpu.say("api/newJob")
        assert cpu.say("api/markAsDone", url=where) == "success"
        assert json.loads(gpu.say("api/newJob"))["url"] == where
        gpu.say("api/markAsDone", count=1)


def test_parcels_that_no_old_gpu_worker_takes_can_be_scraped_anew(tracker, database):
    cpu = Client(tracker, "carl", "CPU")
    for _ in range(3):
        cpu.get("custom/get-cpu-wat")
    assert bring(cpu, range(6))["completed"] == 6
    hybrid = Client(tracker, "ann", "HYBRID")
    with pytest.raises(ZeroJobError):
        hybrid.say("api/newJob")
    assert admin.retry_shards(database) == 0
    assert admin.retry_shards(database, old_parcels=True) == 6
    assert bring(cpu, range(6))["status"] == "failed"
    assert json.loads(hybrid.say("api/newJob"))["number"] == 0


def test_results_of_old_cpu_workers_must_be_asked_for(url, database, fill):
    fill(1)
    with serving(create_app(TrackerSettings(database=url, limits=ANY, fresh=0))) as address:
        with pytest.raises(ValueError, match="accepts no"):
            Client(address, "carl", "CPU")
        client = Client(address)
        with pytest.raises(WorkerTimedOutError):
            client.get("custom/get-cpu-wat")
        secret = ask(address, "/v1/workers", {"nickname": "carl", "kind": "cpu"}).json["secret"]
        assert ask(address, "/v1/lease", {}, secret=secret).json["shard"]
        with pytest.raises(ValueError, match="accepts no"):
            client.post("api/markAsDone", token=secret, type="CPU", url="rsync x")


def test_a_vanished_worker_loses_its_job(tracker, clock):
    silent, other = Client(tracker, "ann", "HYBRID"), Client(tracker, "bob", "HYBRID")
    job = json.loads(silent.say("api/newJob"))
    for _ in range(5):
        json.loads(other.say("api/newJob"))
        other.say("api/markAsDone", count=1)
    with pytest.raises(ZeroJobError):
        other.say("api/newJob")
    clock.now += 3 * 3600
    assert json.loads(other.say("api/newJob"))["number"] == job["number"]
    with pytest.raises(ZeroJobError):
        silent.say("api/markAsDone", count=1)


def test_what_is_malformed_is_400_and_what_is_unknown_404(tracker):
    worker = Client(tracker, "ann", "HYBRID")
    worker.say("api/newJob")
    for count in (-1, 10**9, 10**30, "many", None):
        with pytest.raises(ValueError):
            worker.say("api/markAsDone", count=count)
    with pytest.raises(ValueError):
        worker.post("api/newJob", token=worker.token)
    with pytest.raises(ValueError):
        worker.post("api/newJob", token=worker.token, type="TPU")
    with pytest.raises(ValueError):
        Client(tracker, "x" * 41, "CPU")
    with pytest.raises(ValueError):
        Client(tracker, "ann", "TPU")
    for body in ({"token": "guess", "type": "HYBRID"}, {"token": worker.token, "type": "GPU"}):
        with pytest.raises(WorkerTimedOutError):
            worker.post("api/newJob", **body)
    assert "False" in worker.post("api/validateWorker", token="guess", type="CPU")


def test_the_pages_are_there(tracker):
    worker = Client(tracker, "<b>ann</b>", "CPU")
    assert "<html" in worker.get("")
    page = worker.get(f"worker/CPU/{worker.name}")
    assert "&lt;b&gt;ann&lt;/b&gt;" in page and "<b>ann" not in page
    with pytest.raises(WorkerTimedOutError):
        worker.get("worker/CPU/nobody-0")


def test_the_bloom_service(tracker):
    client = Client(tracker)
    hashes = [f"{n:032x}" for n in range(50)]
    assert client.send_file("deduplicate/", "main", hashes).split() == hashes
    client.send_file("add/", "main", hashes[:20])
    client.send_file("add/", "main", ["https://example.org/a b.jpg", *hashes[:5]])
    asked = [*hashes, "https://example.org/a b.jpg", "https://example.org/c.jpg"]
    answer = client.send_file("deduplicate/", "main", asked).splitlines()
    assert answer == [*hashes[20:], "https://example.org/c.jpg"]
    assert json.loads(client.get("info/?key=main"))["Number of items inserted"] == 21
    with pytest.raises(WorkerTimedOutError):
        client.get("info/?key=other")


def test_a_bloom_call_has_no_more_lines_than_a_server_can_bear(tracker):
    client = Client(tracker)
    for path in ("deduplicate/", "add/"):
        with pytest.raises(ValueError, match="at most 1,000,000 lines"):
            client.send_file(path, "main", ["a"] * 1_000_001)
    assert client.send_file("deduplicate/", "main", ["a"] * 10) == "\n".join(["a"] * 10)


def test_two_bloom_calls_are_served_at_a_time_and_others_meanwhile(tracker, monkeypatch):
    lock, go, inside = threading.Lock(), threading.Event(), []

    def missing(self, lines):
        with lock:
            inside.append(len(inside) + 1)
        go.wait(LIMIT)
        return lines

    monkeypatch.setattr(bloom.BloomFilter, "missing", missing)
    client = Client(tracker)
    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(client.send_file, "deduplicate/", "main", ["a"]) for _ in range(5)]
        until(lambda: len(inside) >= 2)
        for _ in range(20):
            assert json.loads(client.get("data"))["total_pairs_scraped"] == 0
        most = len(inside)
        go.set()
        assert [each.result() for each in asked] == ["a"] * 5
    assert (most, len(inside)) == (2, 5)
