"""The command of `kaggle.sh`: ask for what the environment lacks, then run a session."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from cahlib.core import requirements, status
from cahlib.core.config import Crawl, Job, settings
from cahlib.core.errors import CahError, ConfigError, missing_library_error
from cahlib.core.judge_settings import split_threshold
from cahlib.core.lock import lock_dataset
from cahlib.core.run_directory import RunDirectory
from cahlib.core.secret_store import WATCHDOG_VARIABLE
from cahlib.core.settings import Option, Setting
from cahlib.core.signals import silence_terminal, termination_signals
from cahlib.core.terminal import confirm, report_stopped, robust_streams
from cahlib.crawl import index
from cahlib.run.environment import build_job, read_environment
from cahlib.run.orphan_reminder import orphan_reminder

if TYPE_CHECKING:
    from cahlib.kaggle.pack import KernelSource
    from cahlib.kaggle.servers import SessionServers
    from cahlib.kaggle.service import KaggleAccount

#: What is asked in a terminal if the environment lacks it: variable, question, default.
_QUESTIONS = (
    ("CAH_NICKNAME", "Your nickname, for the dataset's card", ""),
    ("CAH_CONTACT", "A page or e-mail address where site owners reach you", ""),
    ("CAH_CRAWL", "Which crawl", "CC-MAIN-2024-10"),
    ("CAH_SWARM", "How many servers (0: Kaggle's machine alone)", "5"),
)
_CLOUD = "Hetzner API token (not shown, and not stored)"
_KAGGLE = "Kaggle API token, from https://www.kaggle.com/settings (not shown, and not stored)"

#: No version of the client that can download a kernel's output runs on 3.10.
_OLD = "Kaggle's client needs Python 3.11 or newer; recreate .venv with it."

#: Default hours of a session at Kaggle, which allows twelve since 2025.
_HOURS = 9.0

#: Where Kaggle's package looks for credentials.
_CREDENTIALS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY")


def main() -> int:
    """Run a session and return an exit code as `cah` does; 3: continue in another session."""
    with robust_streams(output=True):  # servers are deleted even if the terminal is gone
        return _main()


def _main() -> int:
    for number in termination_signals():
        signal.signal(number, _interrupted)
    try:
        told = _answered(read_environment())
        with orphan_reminder(told.get("HCLOUD_TOKEN", ""), _own(told), _print_error):
            pass  # nothing is asked or ordered before the reminder
        return _attended(told)
    except ModuleNotFoundError as error:
        old = error.name == "kaggle" and sys.version_info < (3, 11)
        _print(_OLD if old else str(missing_library_error(error)))
        return 2
    except CahError as error:
        _print(str(error))
        return error.exit_code
    except EOFError:  # Ctrl-D at a question
        _print("nothing was started: a question was not answered.")
        return 130
    except KeyboardInterrupt:
        _print("interrupted; nothing was started.")
        return 130


def _attended(told: Mapping[str, str]) -> int:
    from cahlib.kaggle.session import (
        KaggleSession,
        check_session,
        describe_interruption,
        run_session,
        server_hours,
    )

    job = _job(told)
    own = job.place.has_servers and _secret(told)
    _require_crawl(job, told)
    kaggle = _account(told)
    _print(f"Kaggle account: {kaggle.user}")
    session = KaggleSession(
        job=job,
        hours=job.place.hours or _HOURS,
        source=_source(told),
        own_swarm=own,
        name=_name(told),
        pause=_pause(told),
        secrets=[*_tokens(told), *kaggle.secrets],
    )
    session = check_session(session, kaggle, report=_print)
    with lock_dataset(job.output.folder):
        pass  # what cannot be written, or is another command's, is refused before it costs anything
    servers = (
        None if own or not job.place.has_servers else _swarm(job, told, server_hours(session.hours))
    )
    _print(_kept(job))
    if not confirm("Start?"):
        return 2
    try:
        folder = run_session(session, kaggle, servers, report=_print)
    except KeyboardInterrupt:
        _print(describe_interruption(session, kaggle.user))
        return 130
    _print(f"the dataset is in {folder}; the same command goes on with it in another session.")
    told = status.read_status(RunDirectory(folder).status)
    if left := status.shards_left(told):
        return report_stopped(left, told["shards"])
    return 1 if told.get("failed") else 0


def _answered(told: dict[str, str]) -> dict[str, str]:
    """Return the environment, completed by answers from the terminal."""
    if not sys.stdin.isatty():
        return told
    for variable, question, default in _QUESTIONS:
        if variable not in told and not (variable == "CAH_CRAWL" and "CAH_TRACKER" in told):
            shown = f" [{default}]" if default else ""
            told[variable] = input(f"{question}{shown}: ").strip() or default
    needed = told.get("CAH_SWARM", "0") != "0" and not _secret(told)
    if needed and not told.get("HCLOUD_TOKEN"):
        told["HCLOUD_TOKEN"] = getpass(f"{_CLOUD}: ").strip()
    return told


def _own(told: Mapping[str, str]) -> Path | None:
    """Return the folder of the swarm that this launch creates itself; None without one."""
    if _secret(told) or told.get("CAH_SWARM", "0") == "0" == told.get("CAH_CORES", "0"):
        return None
    given = {"output": told["CAH_OUTPUT"]} if told.get("CAH_OUTPUT") else {}
    return RunDirectory(Job.from_values(given).output.folder).swarm


#: Settings that may name files of this machine, and how to tell.
_PERHAPS = {
    "model": Path.is_dir, "pretrained": Path.is_file, "also": Path.is_dir, "cascade": Path.is_dir,
}  # fmt: skip


def _job(told: Mapping[str, str]) -> Job:
    """Return the job; raise ConfigError for what the kernel would reject."""
    from cahlib.kaggle.limits import MAX_SESSION_HOURS

    job = build_job({}, told)
    _require_all(job)
    if job.place.engine:
        raise ConfigError(
            "engine: a Kaggle kernel scrapes by itself or with a swarm; leave this out."
        )
    if job.output.url:
        raise ConfigError("output: give a local folder; the kernel's output is downloaded there.")
    links, crawl = job.crawl.links, job.crawl.crawl
    if any("://" not in each for each in links):
        raise ConfigError("links: Kaggle cannot read this machine's files; give URLs.")
    if not (job.place.tracker or links or crawl.startswith(("http://", "https://", "CC-"))):
        raise ConfigError(
            "crawl: Kaggle cannot read this machine's files; give a URL or a crawl's name."
        )
    if job.place.hours > MAX_SESSION_HOURS:
        raise ConfigError(
            f"hours: a Kaggle session lasts at most {MAX_SESSION_HOURS:g} hours; give fewer."
        )
    if job.place.watchdog and _secret(told):
        raise ConfigError(
            "watchdog: servers that the kernel creates itself cannot have one; leave it out."
        )
    for setting in settings():
        name, value = setting.name, setting.of(job)
        if setting.option.file and value and (name not in _PERHAPS or _lies_here(name, value)):
            raise ConfigError(f"{name}: local files are not uploaded to Kaggle; leave it empty.")
    return job


def _require_all(job: Job) -> None:
    """Raise ConfigError for a job that lacks a required setting."""
    try:
        requirements.require_nickname(job)
        requirements.require_contact(job)
        if not job.place.tracker:
            requirements.require_source(job.crawl)
    except ConfigError as error:
        if sys.stdin.isatty():
            raise
        name = str(error).partition(":")[0].upper()
        raise ConfigError(f"{error} Set CAH_{name}, or start in a terminal.") from error


def _require_crawl(job: Job, told: Mapping[str, str]) -> None:
    """Raise ConfigError for a crawl that Common Crawl does not list, if it can be reached."""
    name = job.crawl.crawl
    if (
        job.place.tracker
        or job.crawl.links
        or "://" in name
        or job.crawl.base_url != Crawl().base_url
    ):
        return
    listed = index.crawl_names(told.get("CAH_KAGGLE_CRAWLS") or index.INDEX_URL)
    if not listed:
        _print(f"{index.INDEX_URL} does not answer, so it is not checked whether {name} exists.")
    elif name not in listed:
        raise ConfigError(f"crawl: there is no {name}; the newest are {', '.join(listed[:3])}.")


def _kept(job: Job) -> str:
    """Return how many shards fit into a session's output, as far as known."""
    from cahlib.kaggle.in_kernel import MAX_OUTPUT
    from cahlib.run.disk_space import committed_size, format_size

    done, taken = committed_size(job.output.folder)
    shards = (
        f", at {format_size(taken // done)} a shard after {MAX_OUTPUT * done // taken:,}"
        if taken
        else ""
    )
    return f"Kaggle keeps 20 GB of a session, which stops before it exceeds that{shards}."


def _lies_here(name: str, value: str | Sequence[str]) -> bool:
    """Return whether a model or its weights are a local path, not a name of open_clip's."""
    if not isinstance(value, str):
        return any(_lies_here(name, each) for each in value)
    path = split_threshold(value)[0] if name == "cascade" else value
    return path.startswith(("/", "~", ".")) or _PERHAPS[name](Path(path))


def _account(told: Mapping[str, str]) -> KaggleAccount:
    """Return the account; without valid credentials, ask for its token in a terminal."""
    from cahlib.kaggle.service import KaggleAccount

    for name in _CREDENTIALS:
        if told.get(name):
            os.environ[name] = told[name]
    try:
        return KaggleAccount()
    except ConfigError:
        if not sys.stdin.isatty():
            raise
    os.environ["KAGGLE_API_TOKEN"] = getpass(f"{_KAGGLE}: ").strip()
    return KaggleAccount()


def _swarm(job: Job, told: Mapping[str, str], hours: float) -> SessionServers:
    """Return the servers to create, after printing their cost."""
    from cahlib.kaggle.servers import SessionServers
    from cahlib.run.scrapers import cloud_accounts, watchdog_config

    tokens = told.get("HCLOUD_TOKEN", "")
    watchdog = watchdog_config(job, told.get(WATCHDOG_VARIABLE, ""), tokens)
    servers = SessionServers(job, cloud_accounts(tokens), _print, watchdog=watchdog)
    print(servers.planned(hours), flush=True)
    return servers


def _source(told: Mapping[str, str]) -> KernelSource:
    from cahlib.kaggle.pack import KernelSource

    root = Path(__file__).parent.parent.parent
    found = KernelSource(
        notebook=Path(told.get("CAH_KAGGLE_NOTEBOOK") or root / "gpucah.ipynb"),
        metadata=Path(told.get("CAH_KAGGLE_METADATA") or root / "kaggle-kernel-metadata.json"),
    )
    for path in (found.notebook, found.metadata):
        if not path.exists():
            raise ConfigError(f"{path} does not exist; run kaggle.sh from a checkout of cahlib.")
    return found


def _secret(told: Mapping[str, str]) -> bool:
    """Return whether the cloud's token is among the notebook's secrets at Kaggle."""
    name = "CAH_KAGGLE_SECRET"
    setting = Setting(group="", name=name, type=bool, default=False, option=Option(help=""))
    return bool(setting.parse(told.get(name, "")))


def _tokens(told: Mapping[str, str]) -> list[str]:
    """Return the tokens in the environment; several are separated by spaces or commas."""
    names = ("HCLOUD_TOKEN", WATCHDOG_VARIABLE, "KAGGLE_API_TOKEN", "KAGGLE_KEY")
    return " ".join(told.get(name, "") for name in names).replace(",", " ").split()


def _name(told: Mapping[str, str]) -> str:
    """Return the kernel's name; its private input's is 16 characters longer, of at most 50."""
    name = told.get("CAH_KAGGLE_NAME") or "cahlib"
    if not (5 <= len(name) <= 34 and re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name)):
        raise ConfigError(
            f"CAH_KAGGLE_NAME: {name!r} cannot be a kernel's name; give 5 to 34 characters of a-z "
            "and 0-9, with single hyphens between them."
        )
    return name


def _pause(told: Mapping[str, str]) -> float:
    try:
        return max(float(told.get("CAH_KAGGLE_PAUSE") or 20), 0.01)
    except ValueError:
        raise ConfigError("CAH_KAGGLE_PAUSE: give the seconds between two polls.") from None


def _interrupted(number: int, frame: object) -> None:
    """Treat a closed terminal and a shutdown as Ctrl-C: servers must not be left behind."""
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)  # it may come twice
        silence_terminal()
    raise KeyboardInterrupt


def _print_error(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _print(sentence: str) -> None:
    print(f"kaggle: {sentence}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
