"""The form makes the Job that the command line makes, and says the same of what is wrong."""

import json
import re
import subprocess
import sys
from html import unescape

import ipywidgets as widgets
import pytest
from ipykernel.comm.comm import BaseComm

from cahlib import notebook
from cahlib.core.config import Job, settings
from cahlib.core.errors import ConfigError
from cahlib.crawl import index
from cahlib.notebook.fields import SettingsForm, format_value
from cahlib.notebook.inputs import accept_messages, close_widgets, label
from cahlib.notebook.process import RunProcess
from cahlib.run.environment import build_job
from tests.world.command import environment

GIVEN = {"nickname": "ada", "contact": "https://example.org/crawl", "crawl": "CC-MAIN-2024-10"}


@pytest.fixture(scope="module")
def made():
    return SettingsForm({}, token=("secret", "the environment"))


@pytest.fixture
def form(made):
    """A form with what every run needs; it is made once, as that takes a while."""
    made.fill(GIVEN)
    return made


def another(setting):
    """A text for a setting that means something else than its default."""
    allowed, default = setting.option, setting.default
    if setting.type is bool:
        return "no" if default else "yes"
    if allowed.choices:
        return next(each for each in allowed.choices if format_value(setting, {}) != each)
    if setting.type in (int, float):
        return str(setting.type(allowed.least or 0) + 1)
    checked = {
        "contact": "https://some/page",
        "tracker": "http://some:8000",
        "engine": "tls://some:8786",
        "cascade": "quality:0.3,datacomp:0.2",
    }
    if setting.name in checked:
        return checked[setting.name]
    return "ftp://some/thing" if setting.type is str else "one,two"


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.name)
def test_form_and_terminal_make_the_same_job_of_each_field(form, setting):
    typed = GIVEN | {setting.name: another(setting)}
    if setting.name in ("model", "pretrained"):
        typed |= {"model": "some", "threshold": "0.3"}
    if setting.name == "links":
        typed["crawl"] = ""
    for name, text in typed.items():
        form.fields[name].write(text)
    assert form.job() == build_job(typed, {})
    assert setting.of(form.job()) != setting.default
    job = form.job()
    form.fill(job.values())
    assert form.job() == job


@pytest.mark.parametrize(
    ("name", "text"),
    [("swarm", "ten"), ("shards", "-1"), ("threshold", "2"), ("forms", "films"), ("hours", "x")],
)
def test_a_bad_value_is_said_beside_its_field_as_in_the_terminal(form, name, text):
    form.fields[name].write(text)
    with pytest.raises(ConfigError) as refused:
        build_job({name: text}, {})
    sentence = str(refused.value).removeprefix(f"{name}: ")
    assert note(form, name) == sentence[0].upper() + sentence[1:]
    assert "bad" in form.fields[name].note.value
    form.fields[name].write(format_value(form.fields[name].setting, {}))
    assert form.check() and form.fields[name].setting.option.help[:9] in note(form, name)


@pytest.mark.parametrize("name", ["nickname", "contact", "crawl"])
def test_what_is_missing_is_said_beside_its_field(form, name):
    assert form.check()
    form.fields[name].widget.value = ""
    assert "bad" in form.fields[name].note.value
    assert form.fields[name].widget.description.endswith(" *")
    assert not form.check()
    with pytest.raises(ConfigError, match=f"^{name}: "):
        form.job()


def test_the_terminal_says_the_same_of_what_is_missing(form, tmp_path):
    form.fill({"crawl": "any", "nickname": "ada"})
    assert not form.check()
    clean = {k: v for k, v in environment().items() if k != "CAH_CONTACT"}
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "cahlib.commands.cli",
            "run",
            "--crawl",
            "any",
            "--output",
            tmp_path / "d",
        ],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    said = note(form, "contact")
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[0] == f"cah: contact: {said[0].lower()}{said[1:]}"


def test_servers_need_a_token_and_a_token_is_never_kept_in_its_field():
    form = SettingsForm(GIVEN | {"swarm": 2})
    assert not form.check() and "Servers need" in form.token_note.value
    form.password.value = " hetzner-secret "
    assert form.check() and form.token == "hetzner-secret"
    assert "hetzner-secret" not in str(form.password.get_state())
    assert "hetzner-secret" not in str(form.job())


@pytest.mark.parametrize("blanks", ["  ", "\n", "\u00a0"])
def test_blanks_are_no_token_and_replace_none(blanks):
    form = SettingsForm(GIVEN, token=("found", "the environment"))
    form.password.value = blanks
    assert form.token == "found" and form.password.value == ""


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (2.5, "2.5"), (10.0, "10")])
def test_what_is_remembered_is_written_as_people_write_it(value, text):
    form = SettingsForm(GIVEN | {"hours": value, "output": "v1.0"})
    assert (form.fields["hours"].text, form.fields["output"].text) == (text, "v1.0")


def test_labels_are_words_that_fit_beside_their_fields(form):
    labels = [label(name) for name in form.fields]
    assert len(set(labels)) == len(labels)
    assert all(len(each) <= 19 and "_" not in each for each in labels)  # of 10.5 em


def test_a_found_token_is_shown_as_found_only():
    form = SettingsForm(GIVEN, token=("hetzner-secret", "Colab's secrets"))
    assert "found" in form.password.placeholder and form.password.value == ""
    assert "hetzner" not in form.token_note.value


def test_what_the_environment_gives_wrong_is_said_and_can_be_mended():
    form = SettingsForm(GIVEN | {"swarm": "ten", "preset": "nonsense"})
    assert not form.check()
    assert "is not a whole number" in note(form, "swarm") and "nonsense" in note(form, "preset")
    form.fill(Job().values() | GIVEN)
    assert form.check()


@pytest.mark.parametrize("typo", ["shard", "max_costs", "treshold"])
def test_a_name_that_no_setting_has_is_refused_before_anything_is_started(typo, monkeypatch):
    monkeypatch.setattr(RunProcess, "start", lambda *_: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match=f"^{typo} is not a setting"):
        notebook.form(GIVEN | {typo: 1})


def test_nothing_is_red_before_one_types_and_what_nobody_touched_can_wait():
    form = SettingsForm({"swarm": "ten"})
    form.greet()
    assert [name for name in form.fields if red(form, name)] == ["swarm"]  # the environment's
    form.fields["swarm"].widget.value = "0"
    form.fields["contact"].widget.value = "me"
    assert [name for name in form.fields if red(form, name)] == []  # the nickname comes first
    form.fields["nickname"].widget.value = "ada"
    assert "neither a web page" in note(form, "contact")
    form.fields["contact"].widget.value = "me@example.org"
    assert not red(form, "contact") and not red(form, "crawl")


def test_the_slider_shows_the_presets_value_until_somebody_moves_it():
    form = SettingsForm(GIVEN | {"preset": "laion5b"})
    slider = form.fields["threshold"]
    assert slider.widget.value == 0.28 and form.job().judge.threshold is None
    form.fields["preset"].widget.value = "laion400m"
    assert slider.widget.value == 0.30 and form.job().judge.threshold is None
    assert "ViT-B-32, 0.30 (the rule that built LAION-400M)" in note(form, "preset")
    slider.widget.value = 0.25
    form.fields["preset"].widget.value = "laion5b"
    assert slider.widget.value == 0.25 and form.job().judge.threshold == 0.25


def test_boxes_choose_what_is_written(form):
    boxes = {box.description: box for box in form.fields["forms"].widget.children[1].children}
    boxes["TFRecords"].value = True
    boxes["embeddings"].value = False
    assert form.job().output.forms == ("images", "tfrecords")
    boxes["images as JPEG"].value = True
    assert "not both" in note(form, "forms")


def test_crawls_are_suggested_and_others_can_be_typed(form, tmp_path):
    listed = tmp_path / "collinfo.json"
    names = ["CC-MAIN-2026-47", "CC-MAIN-2013-20", "CC-MAIN-2012", "CC-MAIN-2009-2010"]
    listed.write_text(json.dumps([{"id": name} for name in names]))
    form.suggest_crawls(index.crawl_names(listed.as_uri()))
    assert form.fields["crawl"].widget.options == ("CC-MAIN-2026-47", "CC-MAIN-2013-20")
    form.fields["crawl"].widget.value = "some/file.wat.gz"
    assert form.job().crawl.crawl == "some/file.wat.gz"
    assert index.crawl_names((tmp_path / "nothing").as_uri()) == []


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("oss://b/d", "%pip install ossfs"), ("x9://b/d", "is not a storage"), ("file:///d", "")],
)
def test_a_url_names_the_package_that_it_needs(form, url, sentence):
    form.fields["output"].widget.value = url
    assert sentence in note(form, "output") and red(form, "output") == bool(sentence)


def test_what_a_new_page_says_is_not_brought_to_the_old_ones_subshell(monkeypatch):
    monkeypatch.setattr("comm.create_comm", BaseComm)
    form = SettingsForm(GIVEN)
    accept_messages(form.box)
    form.fields["forms"].write("images,films")  # a box that was not there before
    boxes = form.fields["forms"].widget.children[1].children
    for each in (form.fields["nickname"].widget, form.password, form.box.children[-1], *boxes):
        each.comm._reply_subshell_id = "deleted"  # as a word to the old page would set it
        # the kernel does the same with what it is told
        route = getattr(each.comm, "_reply_subshell_for", None)
        assert (route({}, "new") if route else "new") == "new"
    close_widgets(form.box)


def test_a_form_that_is_closed_leaves_no_widget():
    before = len(widgets.Widget.get_manager_state()["state"])
    made = SettingsForm(GIVEN)
    during = len(widgets.Widget.get_manager_state()["state"])
    close_widgets(made.box)
    assert during - before < 350
    assert len(widgets.Widget.get_manager_state()["state"]) == before


def red(form, name):
    return 'class="bad"' in form.fields[name].note.value


def note(form, name):
    """What stands beside a field."""
    shown = form.fields[name].note.value
    return unescape(re.sub("<[^>]+>", "", shown))
