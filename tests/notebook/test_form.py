"""The form makes the Job that the command line makes, and says the same of what is wrong."""

import subprocess
import sys

import pytest

from cahlib import cli, notebook
from cahlib.config import Job, settings
from cahlib.errors import ConfigError
from cahlib.notebook.child import Child
from cahlib.notebook.fields import Form, written
from tests.world.command import environment

GIVEN = {"nickname": "ada", "contact": "https://example.org/crawl", "crawl": "CC-MAIN-2024-10"}


@pytest.fixture(scope="module")
def made():
    return Form({}, token=("secret", "the environment"))


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
        return next(each for each in allowed.choices if written(setting, {}) != each)
    if setting.type in (int, float):
        return str(setting.type(allowed.least or 0) + 1)
    if setting.name in ("tracker", "engine"):  # whose forms are checked
        return {"tracker": "http://some:8000", "engine": "tls://some:8786"}[setting.name]
    return "ftp://some/thing" if setting.type is str else "one,two"


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.name)
def test_form_and_terminal_make_the_same_job_of_each_field(form, setting):
    typed = GIVEN | {setting.name: another(setting)}
    if setting.name in ("model", "pretrained"):
        typed |= {"model": "some", "threshold": "0.3"}
    for name, text in typed.items():
        form.fields[name].widget.value = text
    assert form.job() == cli.job_from(typed, {})
    assert setting.of(form.job()) != setting.default
    job = form.job()
    form.fill(job.values())
    assert form.job() == job


@pytest.mark.parametrize(
    ("name", "text"),
    [("swarm", "ten"), ("shards", "-1"), ("threshold", "2"), ("forms", "films"), ("hours", "x")],
)
def test_a_bad_value_is_said_beside_its_field_as_in_the_terminal(form, name, text):
    form.fields[name].widget.value = text
    with pytest.raises(ConfigError) as refused:
        cli.job_from({name: text}, {})
    assert note(form, name) == str(refused.value).replace("'", "&#x27;")
    form.fields[name].widget.value = written(form.fields[name].setting, {})
    assert form.check() and form.fields[name].setting.option.help[:9] in note(form, name)


@pytest.mark.parametrize("name", ["nickname", "contact", "crawl"])
def test_what_is_missing_is_said_beside_its_field(form, name):
    assert form.check()
    form.fields[name].widget.value = ""
    assert not form.check()
    assert note(form, name).startswith(f"{name}: ")
    with pytest.raises(ConfigError, match=f"^{name}: "):
        form.job()


def test_the_terminal_says_the_same_of_what_is_missing(form, tmp_path):
    form.fill({"crawl": "any", "nickname": "ada"})
    assert not form.check()
    clean = {k: v for k, v in environment().items() if k != "CAH_CONTACT"}
    ran = subprocess.run(
        [sys.executable, "-m", "cahlib.cli", "run", "--crawl", "any", "--output", tmp_path / "d"],
        env=clean,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2 and ran.stderr.strip() == f"cah: {note(form, 'contact')}".replace(
        "&#x27;", "'"
    )


def test_servers_need_a_token_and_a_token_is_never_kept_in_its_field():
    form = Form(GIVEN | {"swarm": 2})
    assert not form.check() and "token: servers need" in form.token_note.value
    form.password.value = " hetzner-secret "
    assert form.check() and form.token == "hetzner-secret"
    assert "hetzner-secret" not in str(form.password.get_state())
    assert "hetzner-secret" not in str(form.job())


def test_a_found_token_is_shown_as_found_only():
    form = Form(GIVEN, token=("hetzner-secret", "Colab's secrets"))
    assert "found" in form.password.placeholder and form.password.value == ""
    assert "hetzner" not in form.token_note.value


def test_what_the_environment_gives_wrong_is_said_and_can_be_mended():
    form = Form(GIVEN | {"swarm": "ten", "preset": "nonsense"})
    assert not form.check()
    assert note(form, "swarm").startswith("swarm: ") and "nonsense" in note(form, "preset")
    form.fill(Job().values() | GIVEN)
    assert form.check()


@pytest.mark.parametrize("typo", ["shard", "max_costs", "treshold"])
def test_a_name_that_no_setting_has_is_refused_before_anything_is_started(typo, monkeypatch):
    monkeypatch.setattr(Child, "start", lambda *_: pytest.fail("it was started"))
    with pytest.raises(ConfigError, match=f"^{typo}: there is no such setting.$"):
        notebook.form(GIVEN | {typo: 1})


def note(form, name):
    """What stands beside a field."""
    shown = form.fields[name].note.value
    return shown.partition(">")[2].removesuffix("</span>")
