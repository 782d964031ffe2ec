"""kaggle.sh in bash and zsh, sourced and executed; it leaves its user's shell as it was."""

import codecs
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from cahlib.swarm import hetzner
from cahlib.swarm.planner import ServerLimits, plan_servers
from tests.world import cloud as clouds
from tests.world import forks, kaggle, zygote

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "kaggle.sh"
SHELLS = [
    pytest.param(
        shell,
        marks=pytest.mark.skipif(not shutil.which(shell), reason=f"{shell} is not installed."),
    )
    for shell in ("bash", "zsh")
]
NOTEBOOK = """{"cells": [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "outputs": [],
"execution_count": null, "source": ["settings = {}"]}], "metadata": {}, "nbformat": 4,
"nbformat_minor": 5}"""

#: All that a shell knows of itself: options, variables, functions, aliases, traps, folder.
STATE = {
    "bash": "set +o; shopt -p; declare -p; declare -f; alias; trap; pwd",
    "zsh": "set -o; typeset -p; functions; alias; trap; pwd",
}
#: What changes from one line to the next.
FLEETING = ("BASH_LINENO", "LINENO", "RANDOM", "SECONDS", "EPOCH", "_=", "PIPESTATUS", "pipestatus",
            "SRANDOM", "BASHPID", "BASH_ARG", "TTYIDLE", "BASH_COMMAND", "status", "EXIT", "ERRNO",
            "errnos", "epochtime")  # fmt: skip


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Of a user who has told all, and whose work is in a folder of its own."""
    notebook = tmp_path / "gpucah.ipynb"
    notebook.write_text(NOTEBOOK)
    monkeypatch.chdir(tmp_path)
    return {
        **os.environ,
        **kaggle.CRAWLS,
        "PYTHONPATH": str(ROOT),
        "CAH_PYTHON": zygote.interpreter(),
        "KAGGLE_API_ENVIRONMENT": "TEST",
        "KAGGLE_API_TOKEN": kaggle.TOKEN,
        "CAH_NICKNAME": "ada",
        "CAH_CONTACT": "ada@example.org",
        "CAH_CRAWL": "CC-MAIN-2024-10",
        "CAH_SWARM": "0",
        "CAH_OUTPUT": "dataset",
        "CAH_KAGGLE_NOTEBOOK": str(notebook),
        "CAH_KAGGLE_PAUSE": "0.01",
    }


def run(shell, script, environment, **more):
    return subprocess.run(
        [shell, "-c", script], env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL, **more,
    )  # fmt: skip


def completes(request):
    return kaggle.Kernel(request, ["RUNNING", "COMPLETE"], outputs={"dataset/report.html": b"x"})


@pytest.mark.parametrize("shell", SHELLS)
def test_executed_it_runs_a_session_in_the_users_folder(shell, environment, tmp_path):
    environment |= {"CAH_KAGGLE_NAME": "a-kernel-of-as-many-letters-as-can", "CAH_HOURS": "9"}
    with kaggle.serve(kaggle.Service(run=completes)) as service:
        ran = subprocess.run(
            [shell, SCRIPT], env=environment, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Kaggle account: ada" in ran.stdout and len(service.pushed) == 1
    assert (tmp_path / "dataset/report.html").read_text() == "x"
    assert "engine" not in service.pushed[0]["text"]


@pytest.mark.parametrize("options", ["", "set -eu", "set -x"])
@pytest.mark.parametrize("shell", SHELLS)
def test_sourced_it_leaves_the_shell_as_it_was(shell, options, environment):
    environment["CAH_SWARM"] = "ten"  # ends at once, and badly
    script = f"""
{options}
here() {{ {STATE[shell]}; }}
here > before
. {SCRIPT} > said 2>&1
here > after
echo alive in $PWD
"""
    ran = run(shell, script, environment)
    assert f"alive in {os.getcwd()}" in ran.stdout, ran.stderr
    before, after = (_steady(Path(name)) for name in ("before", "after"))
    assert after == before
    assert "swarm: 'ten' is not a whole number from 0 to 1000" in Path("said").read_text()


def _steady(path):
    lines = path.read_text(errors="replace").splitlines()
    return [line for line in lines if not any(word in line for word in FLEETING)]


@pytest.mark.parametrize("shell", SHELLS)
def test_sourced_its_status_is_that_of_the_session(shell, environment):
    environment["CAH_NICKNAME"] = ""
    ran = run(shell, f". {SCRIPT}; echo status $?", environment)
    assert "status 2" in ran.stdout and "nickname: choose one" in ran.stdout


OWN = {"CAH_THRESHOLD": "0.3"}  # which a model of one's own needs


@pytest.mark.parametrize(
    ("told", "code", "sentence"),
    [
        ({"CAH_NICKNAME": ""}, 2, "nickname: choose one"),
        ({"CAH_CONTACT": ""}, 2, "contact: give a web page or an e-mail address"),
        ({"CAH_CRAWL": ""}, 2, "crawl: say what to read"),
        ({"CAH_CRAWL": "my.wat.gz"}, 2, "Kaggle cannot read this machine's files"),
        ({"CAH_BLOCKED_URLS": "my.txt"}, 2, "blocked_urls: local files are not"),
        ({"CAH_SAFETY": "my.json"}, 2, "safety: local files are not"),
        (OWN | {"CAH_MODEL": "~/my-model"}, 2, "model: local files are not"),
        (OWN | {"CAH_MODEL": "models"}, 2, "model: local files are not"),
        (OWN | {"CAH_MODEL": "ViT-B-32", "CAH_PRETRAINED": "gpucah.ipynb"}, 2,
         "pretrained: local files are not"),
        ({"CAH_CASCADE": "models:0.3"}, 2, "cascade: local files are not"),
        ({"CAH_HOURS": "12.1"}, 2, "hours: a Kaggle session lasts at most 12 hours"),
        ({"CAH_CONTACT": "ada"}, 2, "contact: 'ada' is neither a web page"),
        ({"CAH_CRAWL": "CC-MAIN-2024-11"}, 2, "crawl: there is no CC-MAIN-2024-11; the newest are"),
        ({"CAH_OUTPUT": "gpucah.ipynb"}, 2, "gpucah.ipynb cannot be written"),
        ({"CAH_WATCHDOG": "yes", "CAH_KAGGLE_SECRET": "yes"}, 2, "watchdog: servers that the kern"),
        ({"CAH_WATCHDOG": "yes", "CAH_SWARM": "1", "HCLOUD_TOKEN": "a"}, 2, "watchdog: put CAH_W"),
        ({"CAH_KAGGLE_NAME": "a" * 35}, 2, f"CAH_KAGGLE_NAME: '{'a' * 35}' cannot be"),
        ({"CAH_KAGGLE_NAME": "abcd"}, 2, "give 5 to 34 characters"),
        ({"CAH_KAGGLE_NAME": "my kernel"}, 2, "CAH_KAGGLE_NAME: 'my kernel' cannot be"),
        ({"CAH_HOURS": "long"}, 2, "hours: 'long' is not a number"),
        ({"CAH_SWARM": "2"}, 2, "no token is given; put HCLOUD_TOKEN"),
        ({"CAH_SWARM": "2", "HCLOUD_TOKEN": "ünicode"}, 2, "token 1 contains invalid characters"),
        ({"KAGGLE_API_TOKEN": "wrong"}, 2, "create an API token at https://www.kaggle.com/settings"),
        ({"CAH_OUTPUT": "s3://bucket/x"}, 2, "output: give a local folder"),
        ({"CAH_NICKNAME": "ada-two", "HCLOUD_TOKEN": "one, two"}, 2, "nothing was pushed"),
        ({"CAH_SWARM": "2", "CAH_KAGGLE_SECRET": "off"}, 2, "no token is given"),
        ({"CAH_SWARM": "2", "CAH_KAGGLE_SECRET": "ja"}, 2, "'ja' is not valid; give yes or no"),
        ({"CAH_KAGGLE_NOTEBOOK": "/nowhere"}, 2, "/nowhere does not exist"),
    ],
)  # fmt: skip
def test_a_mistake_gets_a_sentence(told, code, sentence, environment):
    Path("models").mkdir()
    with kaggle.serve(kaggle.Service()) as service:
        ran = forks.run(["-m", "cahlib.kaggle"], env=environment | told)  # the script's last line
    assert (ran.returncode, sentence in ran.stdout) == (code, True), ran.stdout + ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr and not service.pushed


def test_servers_that_nobody_works_with_are_told_of(environment):
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        cloud.stranger("token").update(
            labels={"project": "cahlib", "run": "old"}, created="2026-01-01T00:00:00+00:00"
        )
        told = {"CAH_NICKNAME": "", "HCLOUD_TOKEN": "token", "HCLOUD_ENDPOINT": cloud.url}
        ran = forks.run(["-m", "cahlib.kaggle"], env=environment | told)
    assert ran.returncode == 2 and "nickname: choose one" in ran.stdout
    assert "until you type `cah swarm down --run old`" in ran.stderr


def test_a_ceiling_holds_for_all_hours_of_the_servers(environment):
    """They wait for the kernel's GPU and for its end, too: an hour and six minutes."""
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        hourly = plan_servers(
            hetzner.accounts("token", endpoint=cloud.url), ServerLimits(nodes=2)
        ).hourly()
        told = {"CAH_SWARM": "2", "HCLOUD_TOKEN": "token", "HCLOUD_ENDPOINT": cloud.url}
        told |= {"CAH_HOURS": "3", "CAH_MAX_COST": str(hourly * 4.5)}
        with kaggle.serve(kaggle.Service()):
            ran = run("bash", f". {SCRIPT}", environment | told)
    assert ran.returncode == 2 and "POST /servers" not in cloud.calls
    assert f"max_cost: 2 nodes cost EUR {hourly * 5:.2f} in 4.1 hours" in ran.stdout, ran.stdout


def test_what_is_not_told_is_asked_for_in_a_terminal(environment):
    for name in ("CAH_NICKNAME", "CAH_CONTACT", "CAH_SWARM", "KAGGLE_API_TOKEN"):
        del environment[name]
    answers = ["ada", "ada@example.org", "0", kaggle.TOKEN, "y"]
    with kaggle.serve(kaggle.Service(run=completes)) as service:
        code, shown = asked(environment, answers)
    assert code == 0, shown
    assert kaggle.TOKEN not in shown
    assert len(service.pushed) == 1 and "'nickname': 'ada'" in service.pushed[0]["text"]


def test_a_token_that_was_typed_is_not_pushed(environment):
    environment["CAH_NICKNAME"] = f"ada {environment.pop('KAGGLE_API_TOKEN')}"
    with kaggle.serve(kaggle.Service(run=completes)) as service:
        code, shown = asked(environment, [kaggle.TOKEN, "y"])
    assert code == 2 and "nothing was pushed: gpucah.ipynb contains" in shown, shown
    assert not service.pushed


@pytest.mark.parametrize(
    ("missing", "code", "sentence"),
    [("CAH_NICKNAME", 130, "nothing was started"), ("", 2, "Start? [y/N]")],
)
def test_ctrl_d_at_a_question_starts_nothing(missing, code, sentence, environment):
    environment.pop(missing, None)
    with kaggle.serve(kaggle.Service(run=completes)) as service:
        ended, shown = asked(environment, ["\x04"])
    assert ended == code and sentence in shown and "Traceback" not in shown, shown
    assert not service.pushed


def test_who_has_no_secret_at_kaggle_is_asked_for_the_clouds_token(environment):
    environment |= {"CAH_SWARM": "1", "CAH_KAGGLE_SECRET": "no", "HCLOUD_TOKEN": ""}
    code, shown = asked(environment, ["\x04"])
    assert code == 130 and "Hetzner API token" in shown, shown


def test_settings_in_no_text_are_refused(environment, tmp_path):
    (tmp_path / ".env").write_bytes("CAH_NICKNAME=Ägidius".encode("latin-1"))
    ran = run("bash", f". {SCRIPT}", environment)
    assert ran.returncode == 2 and ".env is not a text file in UTF-8" in ran.stdout, ran.stderr


def asked(environment, answers):
    """kaggle.sh in a terminal where its questions are answered: its status, and what it shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", SCRIPT], env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, close_fds=True,
    )  # fmt: skip
    os.close(theirs)
    with open(ours, "r+b", buffering=0) as terminal:
        shown = _talked(terminal, answers)
    return process.wait(), shown


def _talked(terminal, answers):
    """Answer each question when it is asked; gives all that was shown."""
    shown, seen, decoder = "", 0, codecs.getincrementaldecoder("utf-8")()
    while True:
        try:
            shown += decoder.decode(terminal.read(4096))
        except OSError:  # the other side is gone
            return shown
        if answers and shown[seen:].rstrip(" ").endswith((":", "[y/N]")):
            terminal.write(f"{answers.pop(0)}\n".encode())
            seen = len(shown)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed.")
def test_shellcheck_finds_nothing():
    ran = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True)
    assert ran.stdout == ""
