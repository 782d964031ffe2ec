"""The tracker's own API over real HTTP: what it does, and what it refuses with which sentence."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cahlib.tracker.app import create_app
from cahlib.tracker.models import TrackerRules
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.jobs import LIMIT
from tests.world.trackers import ask, serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)
TALLY = {
    "read": {"in": 10, "out": 8, "lost": {"not_a_page": 2}},
    "choose": {"in": 50, "out": 20, "lost": {"no_text": 30}},
    "fetch": {"in": 20, "out": 15, "lost": {"timeout": 5}},
    "judge": {"in": 15, "out": 4, "lost": {"dissimilar": 11}},
}


def uids(count):
    return [f"{n:032x}" for n in range(count)]


FOUR, NONE = {"uids": uids(4), "tally": TALLY}, {"uids": [], "tally": {}}


@pytest.fixture
def settings(url, database):
    rules = TrackerRules(upload_url="s3://parcels", legacy_upload="rsync://host/parcels")
    return TrackerSettings(database=url, rules=rules, limits=ANY, admin="let me in", fresh=0)


@pytest.fixture
def tracker(settings, fill, clock):
    fill(3)
    with serving(create_app(settings, clock=clock)) as url:
        yield url


def join(tracker, kind="hybrid", nickname="ann"):
    answer = ask(tracker, "/v1/workers", {"nickname": nickname, "kind": kind})
    assert answer.status == 201
    return answer.json["secret"]


def test_a_shard_from_lease_to_leaderboard(tracker):
    secret = join(tracker)
    lease = ask(tracker, "/v1/lease", {}, secret=secret).json
    shard = lease["shard"]
    assert not lease["finished"]
    assert (shard["number"], shard["half"], shard["start_id"], shard["end_id"]) == (
        0,
        0,
        0,
        999_999,
    )
    beat = ask(tracker, "/v1/heartbeat", {"shards": [0, 1], "progress": "half"}, secret=secret)
    assert beat.json == {"shards": [0]}
    done = FOUR | {"output": "s3://there"}
    for counted in (True, False):
        answer = ask(tracker, "/v1/shards/0/complete", done, secret=secret)
        assert answer.json == {"counted": counted, "lost": []}
    assert ask(tracker, "/v1/leaderboard").json["pairs"] == [
        {"nickname": "ann", "scraped": 0, "done": 1, "pairs": 4, "verified": False}
    ]
    state = ask(tracker, "/v1/state").json
    assert (state["shards"], state["done"], state["pairs"]) == (6, 1, 4)
    assert state["workers"] == {"hybrid": 1, "cpu": 0, "gpu": 0}


def test_a_parcel_passes_from_cpu_to_gpu_and_back_when_it_cannot_be_fetched(tracker):
    cpu, gpu, other = join(tracker, "cpu"), join(tracker, "gpu"), join(tracker, "gpu")
    assert ask(tracker, "/v1/lease", {}, secret=cpu).json["shard"]["number"] == 0
    parcel = {"url": "s3://parcels/a.tar", "sha256": "ab" * 32, "size": 12}
    sent = parcel | {"tally": {k: v for k, v in TALLY.items() if k != "judge"}}
    assert ask(tracker, "/v1/shards/0/parcel", sent, secret=cpu).json == {"counted": True}
    more = FOUR | {"uids": uids(9), "tally": TALLY | {"judge": {"in": 9, "out": 9}}}
    more["tally"] |= {"fetch": {"in": 20, "out": 9, "lost": {"timeout": 11}}}
    for secret in (gpu, other):
        assert ask(tracker, "/v1/lease", {}, secret=secret).json["shard"]["parcel"] == parcel
        lied = ask(tracker, "/v1/shards/0/complete", more, secret=secret)
        assert (lied.status, "has 15 images" in lied.text) == (422, True)
        gone = ask(tracker, "/v1/shards/0/refetch", {"reason": "404"}, secret=secret)
        assert gone.json == {"set_aside": False}
    assert ask(tracker, "/v1/lease", {}, secret=gpu).json == {
        "shard": None,
        "shards": [],
        "finished": False,
    }


def test_a_worker_is_finished_when_only_others_could_be_given_more(tracker):
    def asked(secret):
        return ask(tracker, "/v1/lease", {}, secret=secret).json

    none_yet, no_more = (
        {"shard": None, "shards": [], "finished": finished} for finished in (False, True)
    )
    ann, cpu, gpu = join(tracker), join(tracker, "cpu"), join(tracker, "gpu")
    for number in range(6):
        assert asked(ann)["shard"]["number"] == number
    for number in range(1, 5):
        ask(tracker, f"/v1/shards/{number}/complete", NONE, secret=ann)
    ask(tracker, "/v1/shards/0/fail", {"reason": "broken"}, secret=ann)
    assert asked(cpu)["shard"]["number"] == 0
    # 0 is the CPU worker's, and may come to the GPU worker; 5 is ann's, and may come back
    assert (asked(ann), asked(cpu), asked(gpu)) == (none_yet,) * 3
    ask(tracker, "/v1/shards/5/complete", NONE, secret=ann)
    assert (asked(ann), asked(cpu), asked(gpu)) == (no_more, none_yet, none_yet)
    parcel = {"url": "s3://parcels/a.tar", "sha256": "ab" * 32, "size": 12}
    ask(tracker, "/v1/shards/0/parcel", parcel, secret=cpu)
    assert (asked(ann), asked(cpu)) == (no_more, no_more)
    assert asked(gpu)["shard"]["number"] == 0
    ask(tracker, "/v1/shards/0/refetch", {"reason": "404"}, secret=gpu)
    assert asked(gpu) == no_more


def test_several_shards_are_leased_at_once_and_kept_by_one_sign_of_life(tracker):
    secret = join(tracker)
    several = ask(tracker, "/v1/lease", {"count": 4}, secret=secret).json
    assert [each["number"] for each in several["shards"]] == [0, 1, 2, 3]
    assert several["shard"] == several["shards"][0]
    held = {"shards": [0, 1, 2, 3]}
    assert ask(tracker, "/v1/heartbeat", held, secret=secret).json == held
    rest = ask(tracker, "/v1/lease", {"count": 4}, secret=secret).json["shards"]
    assert [each["number"] for each in rest] == [4, 5]


def test_who_leases_many_times_at_once_holds_no_more_than_others(database, url, fill):
    fill(40)
    app = create_app(TrackerSettings(database=url, rules=TrackerRules(max_held=8), limits=ANY))
    with serving(app) as tracker, ThreadPoolExecutor(16) as pool:
        secret = join(tracker)
        answers = pool.map(
            lambda _: ask(tracker, "/v1/lease", {"count": 8}, secret=secret), range(32)
        )
        assert sum(len(answer.json["shards"]) for answer in answers) == 8


def test_a_server_that_ends_leaves_no_thread_behind(settings):
    before = set(threading.enumerate())
    with serving(create_app(settings)) as url:
        assert not ask(url, "/v1/lease", {}, secret=join(url)).json["shards"]
        assert any(thread.name.startswith("call") for thread in threading.enumerate())
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("call")]


def test_an_older_worker_is_told_to_update_when_it_joins(tracker):
    older = {"User-Agent": "cahlib"}  # which gave no version
    newcomer = {"nickname": "ann", "kind": "hybrid"}
    answer = ask(tracker, "/v1/workers", newcomer, headers=older)
    assert (answer.status, "upgrade cahlib" in answer.json["detail"]) == (426, True)


def test_giving_back_failing_and_leaving(tracker):
    secret = join(tracker)
    for number in range(3):
        assert ask(tracker, "/v1/lease", {}, secret=secret).json["shard"]["number"] == number
    assert ask(tracker, "/v1/shards/0/release", {}, secret=secret).status == 200
    failed = ask(tracker, "/v1/shards/1/fail", {"reason": "broken\x00"}, secret=secret)
    assert failed.json == {"set_aside": False}
    assert ask(tracker, "/v1/leave", {}, secret=secret).status == 200
    assert ask(tracker, "/v1/lease", {}, secret=secret).status == 401
    assert ask(tracker, "/v1/state").json["todo"] == 6


def test_each_pair_is_given_to_one_shard(tracker):
    ann, bob = join(tracker), join(tracker)
    for secret in (ann, bob):
        ask(tracker, "/v1/lease", {}, secret=secret)
    named = {"uids": uids(4)}
    for number, secret in enumerate((ann, bob)):
        answer = ask(tracker, f"/v1/shards/{number}/pairs", named, secret=secret)
        assert answer.json == {"taken": []}
    assert ask(tracker, "/v1/shards/0/complete", FOUR, secret=ann).json["lost"] == []
    assert ask(tracker, "/v1/shards/1/pairs", named, secret=bob).json == {"taken": uids(4)}
    assert ask(tracker, "/v1/shards/1/complete", FOUR, secret=bob).json["lost"] == uids(4)
    assert ask(tracker, "/v1/state").json["pairs"] == 4


REFUSED = [
    ("/v1/shards/5/complete", FOUR, 409, "not leased"),
    ("/v1/shards/99/complete", FOUR, 404, "no shard 99"),
    ("/v1/shards/0/complete", {"tally": TALLY}, 422, "uids"),
    ("/v1/shards/0/complete", {"pairs": 4, "tally": TALLY}, 426, "upgrade cahlib"),
    ("/v1/shards/0/complete", FOUR | {"uids": [f"{n:031x} " for n in range(4)]}, 422, "uids"),
    ("/v1/lease", {"count": 0}, 422, "count"),
    ("/v1/lease", {"count": 65}, 422, "count"),
    ("/v1/shards/0/complete", FOUR | {"uids": ["ab"]}, 422, "uids"),
    ("/v1/shards/0/complete", FOUR | {"uids": uids(20_001)}, 422, "20,000"),
    ("/v1/shards/0/complete", FOUR | {"uids": uids(1) * 4}, 422, "each uid once"),
    ("/v1/shards/0/complete", FOUR | {"similarities": [0.3]}, 422, "one for each pair"),
    ("/v1/shards/0/complete", FOUR | {"similarities": [0.3, 2, 0, 0]}, 422, "similarities"),
    ("/v1/shards/0/complete", FOUR | {"extra": 1}, 422, "extra"),
    ("/v1/shards/0/complete", {"uids": uids(4)}, 422, "tally"),
    ("/v1/shards/0/complete", FOUR | {"tally": {"read": 3}}, 422, "tally"),
    *(
        (f"/v1/shards/0/{call}", before + b"[" * 400_000 + b"]" * 400_000 + b"}", status, "")
        for call, before, status in (
            ("complete", b'{"uids": [], "tally": {"read": ', 422),
            ("complete", b'{"uids": ', 422),
            ("pairs", b'{"extra": ', 422),
            ("fail", b'{"reason": ', 400),
        )
    ),
    ("/v1/shards/0/complete", FOUR | {"uids": uids(5)}, 422, "tally"),
    (
        "/v1/shards/0/complete",
        FOUR | {"tally": TALLY | {"judge": {"in": 4, "out": 4}}},
        422,
        "tally",
    ),
    *((f"/v1/shards/{number}/complete", FOUR, 422, "number") for number in ("9" * 5000, "-1", "x")),
    ("/v1/shards/99999999999/complete", FOUR, 422, "number"),
    ("/v1/shards/0/parcel", {"url": "x", "sha256": "", "size": 1}, 422, "sha256"),
    ("/v1/shards/0/parcel", {"url": 1, "sha256": "", "size": 1}, 422, "url"),
    ("/v1/shards/0/parcel", {"url": "x", "sha256": "ab" * 32, "size": 1 << 40}, 422, "size"),
    ("/v1/heartbeat", {"shards": "all"}, 422, "shards"),
    ("/v1/heartbeat", b"{", 400, "not valid JSON"),
    ("/v1/shards/0/fail", {"reason": "\ud800"}, 422, "reason"),
    ("/v1/workers", {"nickname": "a\u202eb", "kind": "cpu"}, 422, "invisible"),
    ("/v1/workers", {"nickname": " ", "kind": "cpu"}, 422, "1 to 40"),
    ("/v1/workers", {"nickname": "ann", "kind": "tpu"}, 422, "kind"),
    ("/v1/workers", {"nickname": "x" * 10_000_000, "kind": "cpu"}, 413, "larger"),
    ("/v1/nothing", {}, 404, "Not Found"),
]


def test_what_cannot_be_is_refused_with_a_sentence(tracker):
    secret = join(tracker)
    assert ask(tracker, "/v1/lease", {}, secret=secret).json["shard"]["number"] == 0
    headers = {"Content-Type": "application/json"}
    for path, body, status, says in REFUSED:
        answer = ask(tracker, path, body, secret=secret, headers=headers)
        assert (path, answer.status) == (path, status)
        assert says in answer.json["detail"] and "\n" not in answer.json["detail"]


ELSEWHERE = [
    "file:///home/ann/x.tar",
    "http://169.254.169.254/latest/x.tar",
    "s3://parcels-of-others/x.tar",
    "s3://parcels/../others/x.tar",
    "s3://parcels/%2e%2e/others/x.tar",
    "s3://parcels/a::http://127.0.0.1/x.tar",
    "s3://parcels/",
    "s3://parcels/x.tar\n",
    "",
]


def test_a_parcel_lies_where_the_tracker_says(tracker):
    cpu, gpu = join(tracker, "cpu"), join(tracker, "gpu")
    assert ask(tracker, "/v1/lease", {}, secret=cpu).json["shard"]["number"] == 0
    for where in ELSEWHERE:
        brought = {"url": where, "sha256": "ab" * 32, "size": 12}
        answer = ask(tracker, "/v1/shards/0/parcel", brought, secret=cpu)
        assert (where, answer.status) == (where, 422)
        assert answer.json["detail"].endswith("upload parcels to s3://parcels/.")
    assert ask(tracker, "/v1/lease", {}, secret=gpu).json["shard"] is None


def test_only_json_and_only_known_workers(tracker):
    wrong = ask(tracker, "/v1/lease", b"{}", headers={"Content-Type": "text/plain"}, secret="x")
    assert wrong.status == 415
    assert ask(tracker, "/v1/lease", {}, secret="x").status == 401
    assert ask(tracker, "/v1/lease", {}).status in (401, 403)


def test_a_body_without_a_length_is_measured_as_it_comes(tracker):
    def endless():
        for _ in range(64):
            yield b" " * 65536

    import http.client
    from urllib.parse import urlsplit

    connection = http.client.HTTPConnection(urlsplit(tracker).netloc, timeout=LIMIT)
    headers = {"Content-Type": "application/json"}
    try:
        connection.request("POST", "/v1/workers", endless(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except BrokenPipeError:  # it answered and closed before we had said all
        assert connection.getresponse().status == 413
    finally:
        connection.close()


def test_the_administrator_needs_the_secret(tracker, settings):
    assert ask(tracker, "/v1/admin/retry", {}, secret="wrong").status == 401
    assert ask(tracker, "/v1/admin/retry", {}, secret="let me in").json == {"shards": 0}
    worker = ask(tracker, "/v1/workers", {"nickname": "eve", "kind": "cpu"}).json
    expel = f"/v1/admin/workers/{worker['name']}/expel"
    assert ask(tracker, expel, {}, secret="let me in").status == 200
    assert ask(tracker, "/v1/lease", {}, secret=worker["secret"]).status == 401
    assert ask(tracker, "/v1/admin/workers/no-body/expel", {}, secret="let me in").status == 404


def test_without_a_secret_there_are_no_administrators_calls(url, database):
    with serving(create_app(TrackerSettings(database=url, limits=ANY))) as tracker:
        assert ask(tracker, "/v1/admin/retry", {}, secret="").status == 404
        assert "/v1/admin/retry" not in ask(tracker, "/v1/openapi.json").text


def test_who_asks_too_often_waits(url, database):
    limits = RequestLimits(address=1, worker=1, newcomers=0.01)
    with serving(create_app(TrackerSettings(database=url, limits=limits))) as tracker:
        newcomer = {"nickname": "ann", "kind": "cpu"}
        answers = [ask(tracker, "/v1/workers", newcomer) for _ in range(4)]
        assert [answer.status for answer in answers] == [201, 201, 429, 429]
        assert int(answers[-1].headers["retry-after"]) > 10
        # a forwarded address is not believed
        forged = ask(tracker, "/v1/workers", newcomer, headers={"X-Forwarded-For": "9.9.9.9"})
        assert forged.status == 429
        assert ask(tracker, "/healthz").text == "ok"
    with serving(
        create_app(TrackerSettings(database=url, limits=limits)),
        proxy_headers=True,
        forwarded_allow_ips="127.0.0.1",
    ) as tracker:
        for n in range(4):
            headers = {"X-Forwarded-For": f"9.9.9.{n}"}
            assert ask(tracker, "/v1/workers", newcomer, headers=headers).status == 201


def test_all_addresses_of_an_ipv6_connection_are_one_sender(url, database):
    def joined(address):
        headers = {"X-Forwarded-For": address}
        newcomer = {"nickname": "ann", "kind": "cpu"}
        return ask(tracker, "/v1/workers", newcomer, headers=headers).status == 201

    options = {"proxy_headers": True, "forwarded_allow_ips": "127.0.0.1"}
    limits = RequestLimits(address=0, worker=0, newcomers=0.01)  # two at once, then one in 100 s
    with serving(create_app(TrackerSettings(database=url, limits=limits)), **options) as tracker:
        assert [joined(f"2001:db8:1:2::{n}") for n in range(4)] == [True, True, False, False]
        assert [joined(f"2001:db8:1:{n}::1") for n in range(3, 6)] == [True] * 3
        assert [joined(f"::ffff:9.9.9.{n}") for n in range(4)] == [True] * 4
        assert [joined(name) for name in ("unknown", "9.9.9.0", "9.9.9.0")] == [True, True, False]
