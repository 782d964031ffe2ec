"""What the page's server answers: pairs, pictures, views, marks; and whom it refuses."""

import json
import re
import signal
from contextlib import closing
from urllib.request import urlopen

import numpy as np
import pytest

from cahlib.browse.server import listen
from cahlib.commands.cli import main
from cahlib.core.lock import lock_dataset
from cahlib.core.records import DropReason
from cahlib.dataset.maintain.verify import verify
from tests.browse.conftest import pairs
from tests.world import judged as world
from tests.world.command import started
from tests.world.jobs import until
from tests.world.judged import with_forms
from tests.world.pictures import picture


@pytest.fixture(scope="module")
def stored():
    """The pairs in the order of the rows."""
    return [*pairs(), *pairs(1000)]


def test_each_pair_is_shown_with_its_own_picture(page, stored):
    found = page.json("/api/pairs", count=100)
    assert found["total"] == len(found["items"]) == len(stored)
    for item, pair in zip(found["items"], stored, strict=True):
        assert item["pair"]["TEXT"] == pair.image.candidate.text
        assert item["pair"]["similarity"] == pytest.approx(pair.similarity)
    whole = page.json("/api/pair", row=59)
    assert whole["sha256"] == stored[59].image.sha256
    assert isinstance(whole["SAMPLE_ID"], str)  # which browsers would round
    for row in [*range(len(stored))[::7], 59, 0]:
        status, headers, data = page.ask(f"/image/{row}")
        assert (status, data) == (200, stored[row].image.data)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-type"] == f"image/{stored[row].image.format}".replace("jpg", "jpeg")
    assert page.ask("/image/60")[0] == page.ask("/site/app.py")[0] == 404


def test_views_filter_and_sort(page, stored):
    similar = np.array([each.similarity for each in stored])
    assert page.rows(where="similarity > 0.5", count=99) == np.flatnonzero(similar > 0.5).tolist()
    order = np.argsort(similar, kind="stable").tolist()
    assert page.rows(sort="similarity", order="asc", count=99) == order
    assert page.rows(sort="similarity", count=5, start=5) == order[::-1][5:10]
    assert page.rows(where="NSFW <> 'UNLIKELY'") == [29, 59]
    assert page.json("/api/pairs", where="host = 'nowhere'") == {"total": 0, "items": []}


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"where": "similarty > 1"}, "similarty"),
        ({"where": "1 +"}, "where"),
        ({"where": "TEXT IN (SELECT content FROM read_text('/etc/passwd'))"}, "where"),
        ({"sort": "DROP TABLE pairs"}, "by"),
        ({"start": "-1"}, "start"),
        ({"like": "60"}, "picture"),
        ({"like": "picture:unknown"}, "picture"),
        ({"words": "x" * 1001}, "1,000"),
    ],
)
def test_a_view_that_cannot_be_is_one_sentence(page, query, named):
    error = page.json("/api/pairs", status=400, **query)["error"]
    assert named in error and error[-1] in ".?" and "\n" not in error


def test_a_histogram_and_a_cut_count_each_pair_of_the_view(page, stored):
    view = {"where": "WIDTH > 100"}
    similar = np.array([p.similarity for p in stored if p.image.width > 100])
    bars = page.json("/api/histogram", column="similarity", **view)
    assert sum(bars["counts"]) == len(similar) and bars["none"] == 0
    assert (bars["edges"][0], bars["edges"][-1]) == (similar.min(), similar.max())
    cut = page.json("/api/cut", column="similarity", at=0.45, **view)
    assert (cut["above"], cut["below"]) == ((similar >= 0.45).sum(), (similar < 0.45).sum())
    beside = [each["pair"]["similarity"] for each in cut["items_above"]]
    assert beside == sorted(similar[similar >= 0.45])[:6]
    beside = [each["pair"]["similarity"] for each in cut["items_below"]]
    assert beside == sorted(similar[similar < 0.45])[::-1][:6]
    for query in ({"column": "TEXT", "at": 1}, {"column": "similarity", "at": "nan"}):
        assert "error" in page.json("/api/cut", status=400, **query)


def test_look_alikes_are_in_the_order_of_their_cosines(page, stored):
    vectors = np.array([each.image_embedding for each in stored], np.float32)
    cosines = vectors @ vectors[7]
    found = page.json("/api/pairs", like=7, count=60)
    assert [each["row"] for each in found["items"]] == np.argsort(-cosines, kind="stable").tolist()
    assert found["items"][0]["found"] == pytest.approx(1, abs=1e-3)
    some = page.rows(like=7, where="similarity > 0.5", count=99)
    assert set(some) == {n for n, each in enumerate(stored) if each.similarity > 0.5}
    sorted_ = page.rows(like=7, where="similarity > 0.5", sort="WIDTH", order="asc", count=99)
    widths = [stored[row].image.width for row in sorted_]
    assert set(sorted_) == set(some) and widths == sorted(widths)


def test_without_the_model_all_but_search_by_words_works(page):
    about = page.json("/api/about")
    assert about["alike"] and "--model" in about["words"] and "ViT-tiny/none" in about["words"]
    assert "--model" in page.json("/api/pairs", status=400, words="a cat")["error"]
    assert "--model" in page.json("/api/picture", picture("PNG"), status=400)["error"]
    assert "JPEG" in page.json("/api/picture", b"no picture", status=400)["error"]


def test_without_embeddings_or_pictures_the_rest_works(serve, tmp_path):
    world.write(tmp_path, spec=with_forms())
    page = serve(tmp_path)
    about = page.json("/api/about")
    assert not about["alike"] and not about["pictures"] and "embeddings" in about["words"]
    assert len(page.rows()) == 15
    assert page.ask("/image/3")[0] == 404
    assert "embeddings" in page.json("/api/pairs", status=400, like=1)["error"]


def test_marks_are_kept_and_purge_what_they_name(serve, dataset, capsys):
    page = serve(dataset)
    uids = [each["pair"]["uid"] for each in page.json("/api/pairs", count=4)["items"]]
    state = page.json("/api/marks", {"uids": uids, "marked": True})
    assert (state["marks"], state["fault"]) == (4, "")
    assert page.json("/api/marks", {"uids": uids[:1], "marked": False})["marks"] == 3
    again = serve(dataset)
    shown = again.json("/api/pairs", count=4)["items"]
    assert [each["marked"] for each in shown] == [False, True, True, True]
    lines = again.ask("/marks.jsonl")[2].splitlines()
    assert [json.loads(each)["uid"] for each in lines] == uids[1:]
    assert again.ask("/marks.txt")[2].decode().split()[-3:] == uids[1:]
    for body in ({"uids": ["../x"], "marked": True}, {"uids": uids}, [], b"{"):
        assert "error" in page.json("/api/marks", body, status=400)

    assert main(["purge", str(dataset), "--uids", state["file"]]) == 0
    assert "Removed 3 pairs from 1 shard." in capsys.readouterr().out
    assert page.json("/api/reload", b"")["pairs"] == 57 and list(verify(dataset)) == []
    assert not set(uids[1:]) & {
        e["pair"]["uid"] for e in page.json("/api/pairs", count=99)["items"]
    }


def test_marks_choose_a_new_dataset(serve, dataset, tmp_path, capsys):
    page = serve(dataset, marks=str(tmp_path / "marks"))
    uids = [each["pair"]["uid"] for each in page.json("/api/pairs", count=9)["items"]][::4]
    page.json("/api/marks", {"uids": uids, "marked": True})
    for option, left in (("--marks", 3), ("--not-marks", 57)):
        words = ["select", str(dataset), option, str(tmp_path / "marks")]
        assert main([*words, "--into", str(tmp_path / option)]) == 0
        assert f"{left} pairs stay" in capsys.readouterr().out
        made = {
            each["pair"]["uid"] for each in serve(tmp_path / option).json("/api/pairs")["items"]
        }
        assert (made == {*uids}) if left == 3 else not made & {*uids}
        assert list(verify(tmp_path / option)) == []
    (tmp_path / "marks").write_text("# none\n")
    assert main(words) == 2 and "lists no pair" in capsys.readouterr().err
    (tmp_path / "marks").unlink()
    assert main(words) == 2 and "not-marks: " in capsys.readouterr().err


CHANGED = "The dataset has changed since this page was opened; reload it."


def test_no_part_of_an_open_page_mixes_two_states(serve, dataset, stored):
    """After a purge each says so, read before or not; pictures of the tests may be alike."""
    page = serve(dataset)
    assert page.rows(like=40, count=2)[0] == 40 and page.ask("/image/31")[0] == 200
    page.json("/api/histogram", column="WIDTH")
    uid = stored[0].image.candidate.uid
    (dataset / "list").write_text(uid)
    assert main(["purge", str(dataset), "--uids", str(dataset / "list")]) == 0
    for path, query in (
        ("/api/pairs", {}),
        ("/api/pairs", {"where": "WIDTH > 100"}),
        ("/api/pairs", {"like": 3}),
        ("/api/pair", {"row": 1}),
        ("/api/histogram", {"column": "WIDTH"}),
        ("/api/cut", {"column": "similarity", "at": 0.3}),
        ("/api/dropped", {"reason": "timeout"}),
        ("/marks.jsonl", {}),
    ):
        assert page.json(path, status=409, **query)["error"] == CHANGED, path
    marks = page.json("/api/marks", {"uids": [uid], "marked": True}, status=409)
    assert marks["error"] == CHANGED
    for row in (0, 1, 29, 31):
        status, _, told = page.ask(f"/image/{row}")
        assert (status, told.decode()) == (404, CHANGED)
    assert page.ask("/marks.txt")[0] == 200  # which is what somebody has done
    assert page.json("/api/reload", b"")["pairs"] == 59 and len(page.rows(count=99)) == 59


def test_what_only_adds_to_a_dataset_disturbs_no_page(serve, dataset, stored):
    page = serve(dataset)
    world.add_vectors(dataset, "another/model", np.ones((60, 8)))
    world.write_these(dataset, pairs(3000)[:3], shard="s-9")
    assert page.json("/api/pairs")["total"] == 60
    assert page.ask("/image/31")[2] == stored[31].image.data
    assert page.json("/api/reload", b"")["pairs"] == 63


def test_look_alikes_are_by_the_model_that_is_named(serve, dataset):
    of = np.random.default_rng(0).normal(size=(60, 16)).astype("f4")
    world.add_vectors(dataset, "ViT-L-14-quickgelu/dfn2b", of)
    of /= np.linalg.norm(of, axis=1)[:, None]
    for named in ("quality", "ViT-L-14-quickgelu/dfn2b"):
        page = serve(dataset, model=named)
        assert page.json("/api/about")["alike"]
        assert page.rows(like=7, count=9) == np.argsort(-(of @ of[7]))[:9].tolist()
    assert serve(dataset).rows(like=7, count=9) != page.rows(like=7, count=9)
    about = serve(dataset, model="datacomp").json("/api/about")
    assert about["alike"] and "did not score this dataset" in about["words"]


def test_only_who_knows_the_token_is_answered(page):
    status, headers, _ = page.ask("/")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    name = cookie.partition(";")[0]
    assert page.ask("/api/about", token=False)[0] == 403
    assert page.ask("/api/about", token=False, headers={"Cookie": name})[0] == 200
    assert page.ask("/api/about", token=False, headers={"Cookie": name[:-1] + "~"})[0] == 403
    assert page.ask("/api/about", token=False, headers={"X-Cah-Token": "é"})[0] == 403
    for host in ("evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", ""):
        assert page.ask("/api/about", headers={"Host": host})[0] == 403, host
    for host in ("localhost:1", "127.0.0.1", "[::1]:80"):
        assert page.ask("/api/about", headers={"Host": host})[0] == 200, host
    evil = {"Origin": "http://127.0.0.1:1"}
    assert page.ask("/api/marks", b"{}", headers=evil)[0] == 403
    assert page.ask("/api/nothing")[0] == 404


def test_nothing_from_the_dataset_is_in_the_html(serve, dataset):
    evil = dataset.rename(dataset.with_name("<script>alert(6)<"))
    _, _, html = serve(evil).ask("/")
    assert b"<script>alert" not in html and b"&lt;script&gt;alert(6)" in html
    assert not re.search(rb"\son\w+=|style=", html)


def test_a_damaged_shard_is_named_and_the_others_are_shown(serve, dataset, stored):
    (dataset / "metadata/metadata_s-0.parquet").write_bytes(b"PAR1 damaged")
    page = serve(dataset)
    assert page.rows(where="similarity > 0", count=99) == [*range(30, 60)]
    assert "s-0" in page.json("/api/about")["notices"][0]
    assert "cannot be read" in page.json("/api/pairs", count=1)["items"][0]["fault"]
    assert page.ask("/image/40")[2] == stored[40].image.data
    assert page.ask("/image/4")[0] == 404

    (dataset / "shards/s-0.json").write_bytes(b"{}")
    reloaded = page.json("/api/reload", b"")
    assert (reloaded["pairs"], reloaded["generation"]) == (30, 1) and "s-0" in reloaded["notices"][
        0
    ]
    assert page.ask("/image/0")[2] == stored[30].image.data


def test_damaged_embeddings_and_tars_leave_the_others(serve, dataset, stored):
    (dataset / "img_emb/img_emb_s-1.npy").write_bytes(b"damaged")
    tar = next(dataset.glob("images/*s-1*.tar"), None) or dataset / "images/s-1.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    page = serve(dataset)
    assert sorted(page.rows(like=3, count=99)) == [*range(30)]
    shown = [page.ask(f"/image/{row}") for row in range(30, 60)]
    assert {status for status, _, _ in shown} == {200, 404}
    for (status, _, data), pair in zip(shown, stored[30:], strict=True):
        assert status == 404 or data == pair.image.data


def test_a_dataset_in_use_is_shown(serve, dataset):
    with lock_dataset(dataset):
        assert len(serve(dataset).rows(count=99)) == 60


def test_what_cannot_be_served_is_one_sentence(dataset, tmp_path, capsys):
    assert main(["browse", str(tmp_path)]) == 2
    assert "holds no dataset" in capsys.readouterr().err
    with closing(listen("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["browse", str(dataset), "--port", port]) == 2
        assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["browse", str(dataset), "--marks", str(tmp_path / "none" / "marks")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "marks").write_text("no uids")
    assert main(["browse", str(dataset), "--marks", str(tmp_path / "marks")]) == 2
    assert "md5" in capsys.readouterr().err
    assert main(["browse", str(dataset), "--port", "70000"]) == 2


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_command_opens_its_page_and_serves_it_until_it_is_ended(dataset, tmp_path, end):
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o700)
    page = started("browse", dataset, "--open", BROWSER=str(browser))
    address = page.stdout.readline().strip()
    with urlopen(address) as answer:
        assert b"<html" in answer.read()
    until(lambda: opened.exists() and opened.read_text())
    page.send_signal(end)
    assert page.communicate()[0] == "Open this address in a browser; Ctrl-C ends it.\n"
    assert page.returncode == 0
    assert opened.read_text().strip() == address


def test_marks_that_cannot_be_stored_stay_and_say_so(serve, dataset):
    (dataset / "run").write_text("a file where a folder should be")
    page = serve(dataset)
    state = page.json("/api/marks", {"uids": ["0" * 32], "marked": True})
    assert state["marks"] == 1 and "not stored" in state["fault"]
    assert page.ask("/marks.txt")[2].decode().endswith("0" * 32 + "\n")


def test_a_dataset_at_a_url_is_read_by_ranges(serve, dataset, stored, tmp_path):
    import fsspec

    there = fsspec.filesystem("memory")
    there.put(str(dataset), "/browsed", recursive=True)
    page = serve("memory://browsed", marks=str(tmp_path / "marks.txt"))
    try:
        for row in (59, 0, 31, 30):
            assert page.ask(f"/image/{row}")[2] == stored[row].image.data
        assert page.rows(like=59, count=1) == [59]
    finally:
        there.rm("/browsed", recursive=True)


def test_dropped_candidates_are_listed_by_reason(serve, tmp_path):
    world.write(tmp_path)
    world.write(tmp_path, first=1000, shard="s-1")
    page = serve(tmp_path)
    reasons = {value: count for value, _, count in page.json("/api/about")["dropped"]}
    manifests = page.browser.dataset.manifests
    for reason, count in reasons.items():
        found = page.json("/api/dropped", reason=reason, count=200)
        dropped = sum(each.stats.dropped[DropReason(reason)] for each in manifests)
        assert found["total"] == len(found["items"]) == count == dropped
        assert {each["reason"] for each in found["items"]} == {reason}
        some = page.json("/api/dropped", reason=reason, start=count // 2, count=3)["items"]
        assert some == found["items"][count // 2 :][:3]
    made = [*world.some(30)[0], *world.some(30, first=1000)[0]]
    wanted = [e.image.candidate.url for e in made if e.reason is DropReason.DISSIMILAR]
    shown = page.json("/api/dropped", reason="dissimilar", count=99)["items"]
    assert [each["url"] for each in shown] == wanted
    assert all(each["url"] is None for each in page.json("/api/dropped", reason="minor")["items"])
    assert "reason" in page.json("/api/dropped", reason="none", status=400)["error"]
    (tmp_path / "outcomes/s-0.parquet").write_bytes(b"damaged")
    assert "s-0" in page.json("/api/dropped", reason="timeout", status=503)["error"]


def test_an_index_finds_what_is_found_without_and_is_not_trusted(serve, dataset, stored):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    page, notes = serve(dataset), []
    queries = [{"like": 7}, {"like": 40, "where": "similarity > 0.5"}]
    wanted = [page.json("/api/pairs", count=60, **each) for each in queries]
    page.browser.dataset.make_index(notes.append)
    assert notes and list(verify(dataset)) == []
    indexed = serve(dataset)
    assert indexed.json("/api/about")["notices"] == []
    assert [indexed.json("/api/pairs", count=60, **each) for each in queries] == wanted

    rows = dataset / "run/search/rows.npy"
    for damage in (b"damaged", rows.read_bytes()[:-8]):
        rows.write_bytes(damage)
        page = serve(dataset)
        assert [page.json("/api/pairs", count=60, **each) for each in queries] == wanted
        assert "--index" in page.json("/api/about")["notices"][0]
    (dataset / "list").write_text(stored[0].image.candidate.uid)
    assert main(["purge", str(dataset), "--uids", str(dataset / "list")]) == 0
    page = serve(dataset)
    page.rows(like=5)
    assert "out of date" in page.json("/api/about")["notices"][0]
