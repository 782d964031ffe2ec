"""Which jobs are sent, and which are taken back from behind others."""

from types import SimpleNamespace

from cahlib.engine import dispatch
from cahlib.engine.dispatch import RemoteJob, jobs_to_send, stuck_jobs, track_workers


def job(status="", **more):
    future = SimpleNamespace(status=status) if status else None
    return RemoteJob(function=print, arguments=(), limit=1, future=future, **more)


def keys(jobs, slots, known=()):
    return [key for key, _ in jobs_to_send(jobs, slots, set(known))]


def test_as_many_are_sent_as_can_run_in_the_order_of_their_submission():
    jobs = {"a": job("pending"), "b": job(), "c": job(), "d": job()}
    assert keys(jobs, 0) == keys(jobs, 1) == []
    assert keys(jobs, 3) == ["b", "c"]


def test_what_has_ended_or_is_on_its_way_here_takes_no_slot():
    jobs = {"a": job("finished", fetching=True), "b": job("pending", ended=True), "c": job()}
    assert keys(jobs, 1) == ["c"]


def test_what_runs_there_already_is_sent_at_once_to_be_found():
    jobs = {"a": job("pending"), "b": job(), "c": job()}
    assert keys(jobs, 1, known=["c"]) == ["c"]


def test_the_job_that_came_last_to_a_busy_worker_goes_to_a_free_one(monkeypatch):
    clock = iter(range(1, 10))
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: next(clock))
    jobs = {"a": job("pending"), "b": job("pending")}
    track_workers(jobs, {"one": ["a"], "two": ["b"]})
    moved = {"one": ["b", "a"]}
    track_workers(jobs, moved)
    assert stuck_jobs(jobs, moved, {"one": 1}) == []  # nobody is free
    assert stuck_jobs(jobs, moved | {"three": ["cahlib-piece-1"]}, {"one": 1, "three": 1}) == ["b"]
    assert stuck_jobs(jobs, moved, {"one": 2, "three": 1}) == []
    assert stuck_jobs(jobs, {"one": ["a"], "three": ["b"]}, {"one": 1, "three": 1}) == []
    assert stuck_jobs(jobs, {"one": ["a"]}, {"one": 0, "three": 1}) == []  # it is drained


def test_of_two_jobs_that_a_driver_finds_at_a_worker_the_one_that_reports_runs():
    jobs = {"a": job("pending"), "b": job("pending")}
    track_workers(jobs, found := {"one": ["a", "b"]})
    jobs["a"].last_change += 1
    assert stuck_jobs(jobs, found, {"one": 1, "two": 1}) == ["b"]
    jobs["b"].last_change, jobs["a"].last_change = jobs["a"].last_change, jobs["a"].assigned_at
    assert stuck_jobs(jobs, found, {"one": 1, "two": 1}) == ["a"]


def test_a_job_of_a_worker_that_was_restarted_has_its_time_anew(monkeypatch):
    clock = iter((10.0, 20.0, 30.0, 40.0))
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: next(clock))
    jobs = {"a": job("pending", last_change=0.0)}
    track_workers(jobs, {"one": ["a"]})
    track_workers(jobs, {"one": ["a"]})
    assert jobs["a"].last_change == 10
    track_workers(jobs, {})
    track_workers(jobs, {"one": ["a"]})
    assert jobs["a"].last_change == 40
