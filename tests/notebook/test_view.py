"""What the cell shows of a run, by what the run wrote of itself."""

import re

import pytest

from cahlib.core.config import Job, replace_settings
from cahlib.notebook import estimate, view
from cahlib.notebook.machine import MachineMonitor, MachineState, parse_gpus
from cahlib.notebook.state import RunInfo, panel_state
from cahlib.run import disk_space

EVIL = "<img src=x onerror=a>\"'"
PAIR = {"nsfw": "UNLIKELY", "jpeg": "blots", "clear": "", "text": EVIL, "similarity": 0.3}
NODE = {
    "name": "cah-1", "location": "fsn1", "type": "cx23", "state": "works", "job": EVIL,
    "rate": 12.5, "seen": 3.0, "cost": 0.01, "line": EVIL,
}  # fmt: skip


def live(**values):
    lost = {"in": 9, "out": 2, "lost": {"timeout": 6, "dns": 1}}
    return {
        "state": "running", "sentence": "", "elapsed": 600.0, "shards": 8, "done": 3, "before": 1,
        "failed": 0, "busy": 0.5,
        "rates": {"links": 20.0, "images": 9.0, "judged": 9.0, "pairs": 1.0},
        "queues": {"parcels": [0, 2], "judged": [0, 256], "committed": [0, 2]},
        "stats": {"fetch": lost},
        "history": [[0, 1, 1, 0, 0.1], [600, 20, 9, 1, 0.5]],
    } | values  # fmt: skip


def words(html):
    return re.sub(r"<[^>]+>", " ", html)


def head(live, *, running):
    known = RunInfo(running=running, live=live, launched=bool(live))
    machine = MachineState(gpus=("T4: 1.0 GB of 16.1 GB in use",), free=3 * 10**9, size=2 * 10**6)
    return view.head_html(panel_state(known), live, machine, running=running)


def test_how_far_a_run_is():
    assert "about 25 minutes to go" in head(live(), running=True)
    assert "3 of 8 shards" in head(live(), running=True)
    failed = head(live(state="failed", sentence=EVIL), running=False)
    assert "The run failed" in failed and EVIL not in failed


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("parcels", "judging"), ("judged", "writing"), ("committed", "uploading"), ("", "scraping")],
)
def test_the_slowest_step_is_named(name, sentence):
    queues = live()["queues"]
    if name:
        queues[name] = [queues[name][1]] * 2
    assert f"{sentence} is the slowest step" in head(live(queues=queues), running=True)
    assert "waiting" not in head(live(queues={}), running=True)  # servers are being made


@pytest.mark.parametrize(
    ("busy", "parcels", "nodes", "hint"),
    [
        (0.5, 0, 3, "The model waits for images: add 3 nodes"),
        (0.8, 0, 4, "The model waits for images: add 1 node"),
        (0.01, 0, 4, "The model waits for images: add 20 nodes"),
        (0.5, 1, 3, ""),
        (0.95, 0, 3, ""),
        (1.0, 2, 3, "The nodes wait for the model: fewer would do"),
        (0.5, 0, 0, ""),
    ],
)
def test_how_many_nodes_would_feed_the_gpu(busy, parcels, nodes, hint):
    queues = {"parcels": [parcels, 2]}
    assert estimate.advice(live(busy=busy, queues=queues, nodes=[NODE] * nodes)) == hint


def test_costs_so_far_and_to_come():
    html = head(live(spent=0.5, hourly=0.6), running=True)
    assert "EUR 0.50 (EUR 0.600 an hour), about EUR 0.75 in all" in html


def test_the_totals_stay_and_what_is_of_now_does_not():
    values = live(spent=0.5, hourly=0.6, stats={"judge": {"in": 9, "out": 1234, "lost": {}}})
    going, over = (words(head(values, running=running)) for running in (True, False))
    for each in ("1,234 pairs", "10 minutes in this launch", "2.0 MB", "EUR 0.50"):
        assert each in going and each in over
    for each in ("an hour", "to go", "in all", "T4: 1.0 GB", "3.0 GB of disk left", "slowest"):
        assert each in going and each not in over


def test_a_machine_tells_of_its_gpus_and_its_disk(tmp_path):
    assert parse_gpus("Tesla T4, 1024, 15360\nNVIDIA GB10, [N/A], [N/A]\n") == [
        "Tesla T4: 1.1 GB of 16.1 GB in use",
        "NVIDIA GB10",
    ]
    (tmp_path / "d" / "run").mkdir(parents=True)
    for name in ("run/big", "one", "two"):
        (tmp_path / "d" / name).write_bytes(bytes(1000))
    seen = MachineMonitor(gpu=False).read(tmp_path / "d")
    assert seen.size == 2000 and seen.free > 0 and "of disk left" in str(seen)


def test_what_is_saved_of_a_folder_is_all_the_room_there_is(tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "_SAVED", {tmp_path: 3_000_000})
    (tmp_path / "more").write_bytes(bytes(400_000))
    job = replace_settings(Job(), output=str(tmp_path / "dataset"), shards=2)
    assert disk_space.describe_disk_space(job) == (
        f"2.6 MB more can be saved: {tmp_path} keeps at most 3.0 MB. 2 shards will take at "
        "least 5.0 MB. That is not enough: make room, or give fewer --shards."
    )
    assert str(MachineMonitor(gpu=False).read(tmp_path / "dataset")) == "2.6 MB of disk left"
    assert disk_space.describe_disk_space(
        replace_settings(job, output="file:///d", keep_local=False)
    ).startswith("The dataset's")


def test_many_nodes_take_turns():
    nodes = [NODE | {"name": f"cah-{n}"} for n in range(20)]
    shown = [view.nodes_html(live(nodes=nodes), turn) for turn in range(4)]
    assert "Nodes 1 to 8 of 20" in shown[0] and "Nodes 17 to 20 of 20" in shown[2]
    assert shown[3] == shown[0] and "cah-8<" in shown[1] and "cah-8<" not in shown[0]
    assert view.nodes_html(live(), 0) == "" and "None" not in view.nodes_html(live(nodes=[{}]), 0)


def test_strange_words_stay_words():
    pairs = [PAIR | {"kept": True}]
    parts = (
        view.nodes_html(live(nodes=[NODE]), 0),
        view.gallery_html(live(latest=pairs), clear=False),
        view.log_html([EVIL]),
    )
    for part in parts:
        assert "<img src=x" not in part and "onerror=a" in words(part)


def test_unsafe_pictures_are_blots_until_they_are_asked_for():
    pair = PAIR | {"kept": False, "nsfw": "NSFW", "clear": "picture"}
    hidden = view.gallery_html(live(latest=[pair]), clear=False)
    assert "picture" not in hidden and "blots" in hidden and "NSFW, blurred" in hidden
    assert "base64,picture" in view.gallery_html(live(latest=[pair]), clear=True)


def test_charts_and_failures():
    html = view.charts_html(live(), running=True)
    assert html.count("<svg") == 4 and "50%" in html and "nan" not in html
    assert "50%" not in view.charts_html(
        live(), running=False
    )  # no rate of a run that is over is now
    assert view.charts_html(live(history=[[0, 0, 0, 0, 0]]), running=True).count("<svg") == 4
    assert view.charts_html({}, running=False) == "" and view.drops_html({}) == ""
    assert re.search(
        r"took too long.*6.*did not resolve.*1", words(view.drops_html(live())), re.DOTALL
    )


def test_the_same_as_one_line():
    line = view.text_line("Words.", live(failed=1, nodes=[NODE], spent=0.25), running=True)
    assert "shards 3/8, 1 failed" in line and "1 node, EUR 0.25" in line and "\n" not in line
    assert line.startswith("Words. · ") and view.text_line("Words.", {}, running=True) == "Words."


def test_who_waits_for_the_network_is_said():
    words = "2 scrapers have had no network for 35 s; work resumes when it is back"
    away = live(offline=[35.2, 4.0])
    assert words in head(away, running=True) and words in view.text_line("", away, running=True)
    assert "no network" not in head(away, running=False)
    assert "no network" not in head(live(offline=[]), running=True)
