"""The panel as a function of what is known: no widget, no process, no cloud."""

import itertools

import pytest

from cahlib.notebook.state import Phase, RunInfo, panel_state

UP = {"state": "running", "shards": 8, "done": 3, "failed": 0, "rates": {"links": 9.0}}
MADE, WORKS = {"state": "boot"}, {"state": "works"}


def known(**values):
    return RunInfo(**{"launched": True, **values})


def over(state, **values):
    return {"live": UP | {"state": state, **values}}


@pytest.mark.parametrize(
    ("values", "phase", "heading", "start"),
    [
        ({"launched": False}, "NOTHING", "No run yet", "Start"),
        ({"planned": True, "launched": False}, "PLANNED", "nothing has been ordered", "Start"),
        ({"running": True}, "STARTING", "is starting", "Start"),
        ({"running": True, "live": UP | {"rates": {}}}, "RUNNING", "in progress", "Start"),
        (
            {"running": True, "servers": 2, "live": UP | {"rates": {}}},
            "STARTING",
            "Starting servers: 0 of 2 ready.",
            "Start",
        ),
        (
            {"running": True, "servers": 2, "live": UP | {"rates": {}, "nodes": [MADE, MADE]}},
            "STARTING",
            "0 of 2 ready",
            "Start",
        ),
        (
            {"running": True, "servers": 2, "live": UP | {"nodes": [MADE, WORKS]}},
            "RUNNING",
            "in progress",
            "Start",
        ),
        ({"running": True, "asked": "stop", "live": UP}, "STOPPING", "is stopping", "Start"),
        ({"running": True, **over("stopping")}, "STOPPING", "is stopping", "Start"),
        ({"running": True, "asked": "down", "live": UP}, "STOPPING", "ending at once", "Start"),
        (over("ended", done=8), "ENDED", "has ended", "Start"),
        (over("ended", done=7, failed=1), "ENDED", "has ended", "Start"),
        (over("ended"), "STOPPED", "5 of 8 shards are left", "Go on"),
        ({"asked": "down", **over("failed")}, "STOPPED", "was ended at once", "Go on"),
        ({"asked": "down", **over("stopping")}, "STOPPED", "was ended at once", "Go on"),
        (over("failed", sentence="No space."), "FAILED", "failed: No space.", "Go on"),
        ({"log_lines": ["a", "cah: no crawl."]}, "FAILED", "failed: no crawl.", "Go on"),
        ({"live": UP}, "CRASHED", "crashed", "Go on"),
        ({"asked": "stop", **over("stopping")}, "CRASHED", "crashed", "Go on"),
    ],
)
def test_each_state_has_its_name_its_heading_and_its_way_on(values, phase, heading, start):
    shown = panel_state(known(**values))
    assert shown.phase is Phase[phase]
    assert heading in shown.heading and shown.start == start
    assert shown.bad == (phase in ("FAILED", "CRASHED"))


def test_a_run_that_died_shows_its_last_words():
    lines = [str(n) for n in range(8)]
    assert panel_state(known(live=UP, log_lines=lines)).lines == lines[-5:]
    assert panel_state(known(running=True, live=UP, log_lines=lines)).lines == ()


@pytest.mark.parametrize(("state", "asks"), [("running", True), ("failed", True), ("ended", False)])
def test_without_a_token_a_dead_run_asks_for_one(state, asks):
    live = UP | {"state": state}
    assert (
        "give the token" in panel_state(known(live=live, left=True, token=False)).banner
    ) == asks
    assert not panel_state(known(live=live, left=True)).banner
    assert not panel_state(known(live=live, token=False)).banner


def test_servers_are_ordered_by_a_plan_alone_and_its_price_is_on_the_button():
    plain = panel_state(known(launched=False, wanted=True))
    assert "start" not in plain.allowed and "Plan first" in plain.start
    order = "5 servers for at most EUR 0.35"
    drawn = {"wanted": True, "planned": True, "order": order}
    assert panel_state(known(launched=False, **drawn)).start == f"Order {order}"
    again = panel_state(known(live=UP, **drawn))
    assert again.start == f"Go on: order {order}" and "start" in again.allowed


EVERY = [
    dict(
        zip(("running", "live", "asked", "busy", "wanted", "planned", "left"), values, strict=True)
    )
    for values in itertools.product(
        (False, True),
        ({}, *(UP | {"state": each} for each in ("running", "stopping", "ended", "failed"))),
        ("", "stop", "down"),
        ("", "plan", "down", "delete"),
        (False, True),
        (False, True),
        (False, True),
    )
]


def test_whatever_is_known_no_click_can_cost_money_twice():
    for values in EVERY:
        order = "2 servers" if values["planned"] and values["wanted"] else ""
        shown = panel_state(known(order=order, **values))
        can = shown.allowed
        if values["running"] or values["busy"]:
            assert not {"plan", "start"} & can, values
        if values["wanted"] and not values["planned"]:
            assert "start" not in can, values
        if values["asked"] or values["live"].get("state") == "stopping":
            assert "stop" not in can, values  # a second signal would be an abort
        if values["running"]:
            assert not shown.settings and ("down" in can or values["busy"] in ("down", "delete"))
        assert not ({"stop"} & can and not values["running"])
