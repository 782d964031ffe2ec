"""Where a notebook runs, and where its secrets are."""

import sys

import pytest

from cahlib.core.errors import ConfigError
from cahlib.notebook.runtime import (
    Runtime,
    detect_runtime,
    find_token,
    mount_drive,
    require_internet,
)

COLAB = """
class SecretNotFoundError(Exception): pass
def get(name):
    if name not in {kept!r}: raise SecretNotFoundError(name)
    return {kept!r}[name]
"""
KAGGLE = """
class UserSecretsClient:
    def get_secret(self, name):
        assert name == "HCLOUD_TOKEN"
        return {value!r}
"""
COLAB_AWAY = """
from google.colab import errors
def get(name):
    raise errors.MessageError("no answer")
"""
KAGGLE_AWAY = """
class BackendError(Exception): pass
class UserSecretsClient:
    def get_secret(self, name):
        raise {error}
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Puts modules where Colab and Kaggle have theirs."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        """Let modules of these names be looked for anew; those that were there come back."""
        own = ("google", "kaggle_secrets")
        return {
            name: sys.modules.pop(name)
            for name in list(sys.modules)
            if name.partition(".")[0] in own
        }

    def write(name, text):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(tmp_path).parents[:-1]:
            (tmp_path / folder / "__init__.py").touch()
        path.write_text(text)
        forget()

    before = forget()
    yield write
    forget()
    sys.modules.update(before)


def test_secrets_are_looked_for_in_the_notebooks_own_place_first(modules):
    assert find_token({}) == ("", "")
    assert find_token({"HCLOUD_TOKEN": "mine"}) == ("mine", "the environment")
    modules("kaggle_secrets", KAGGLE.format(value="theirs"))
    assert find_token({"HCLOUD_TOKEN": "mine"}) == ("theirs", "Kaggle's secrets")
    modules("google.colab.userdata", COLAB.format(kept={"HCLOUD_TOKEN": "hers"}))
    assert find_token({"HCLOUD_TOKEN": "mine"}) == ("hers", "Colab's secrets")


def test_a_secret_that_is_not_there_or_not_allowed_is_as_none(modules):
    modules("google.colab.userdata", COLAB.format(kept={}))
    assert find_token({}) == ("", "")
    modules("google.colab.errors", "class Error(Exception): pass\nclass MessageError(Error): pass")
    modules("google.colab.userdata", COLAB_AWAY)
    assert find_token({}) == ("", "")


@pytest.mark.parametrize("error", ["BackendError", "ConnectionError", "ValueError"])
def test_secrets_whose_service_is_away_are_as_none(modules, error):
    modules("kaggle_secrets", KAGGLE_AWAY.format(error=error))
    assert find_token({}) == ("", "")
    modules("kaggle_secrets", KAGGLE_AWAY.format(error="ZeroDivisionError"))
    with pytest.raises(ZeroDivisionError):
        find_token({})


def test_places_are_told_by_their_environment():
    kaggle = detect_runtime({"KAGGLE_KERNEL_RUN_TYPE": "Batch"})
    assert (kaggle.name, kaggle.widgets) == ("Kaggle", False) and "verified phone" in kaggle.terms
    assert kaggle.output == "/kaggle/working/dataset"
    colab = detect_runtime({"COLAB_RELEASE_TAG": "x"})
    assert colab.name == "Colab" and "forbids workers of distributed computing" in colab.terms
    jupyter = detect_runtime({})
    assert jupyter.name == "Jupyter" and not jupyter.widgets and "cost money" in jupyter.terms


def runtime(name):
    return Runtime(name=name, gpu=True, widgets=True, output="dataset")


def test_on_colab_a_folder_vanishes_unless_it_is_on_drive(modules):
    colab, drive = runtime("Colab"), "file:///content/drive/MyDrive/dataset"
    assert "vanishes with the runtime" in colab.warning("dataset")
    assert "vanishes with the runtime" in colab.warning("/content/drive/MyDrive/../../x")
    assert colab.warning(drive) == colab.warning("s3://bucket/d") == ""
    assert runtime("Jupyter").warning("dataset") == runtime("Kaggle").warning("dataset") == ""
    modules("google.colab.drive", "def mount(path): raise ValueError(f'no {path}')")
    with pytest.raises(ConfigError, match="Drive was not mounted .no /content/drive"):
        mount_drive()


def test_who_waits_for_a_session_is_told_to_follow():
    assert runtime("Kaggle").follow_seconds > 0 and runtime("Kaggle").is_idle_soon
    assert runtime("Colab").is_idle_soon and "run the last cell" in runtime("Colab").terms
    assert not runtime("Jupyter").is_idle_soon


@pytest.mark.parametrize("name", ["Colab", "Kaggle", "Jupyter"])
def test_where_there_is_no_gpu_it_is_said_how_to_have_one(name):
    place = Runtime(name=name, gpu=False, widgets=True, output="dataset")
    assert place.advice.startswith("There is no GPU") and place.advice.count(".") == 2
    assert Runtime(name=name, gpu=True, widgets=True, output="dataset").advice == ""


def test_a_kaggle_notebook_without_internet_is_told_so():
    with pytest.raises(ConfigError, match="Settings → Internet"):
        require_internet(
            Runtime(name="Kaggle", gpu=True, widgets=True, output="x"), host="nowhere.invalid"
        )
