"""The command `cah`: a Job from options and environment, its run shown, an exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cahlib import __version__
from cahlib.commands import (
    blocklist,
    browse,
    change_dataset,
    check_dataset,
    completion,
    guide,
    retry,
    score,
    select,
    swarm,
    tracker,
    why,
    worker,
)
from cahlib.commands.console import print_message, print_run
from cahlib.commands.parser import Parser, typed_settings
from cahlib.core import logs
from cahlib.core.config import Job
from cahlib.core.errors import (
    CahError,
    MissingSetting,
    describe_unusable_file,
    disk_full_error,
    is_disk_full,
    missing_library_error,
)
from cahlib.core.own_process import begin_own_process, pandas_hidden, uncollected
from cahlib.core.run_directory import RunDirectory
from cahlib.core.secret_store import WATCHDOG_VARIABLE
from cahlib.core.signals import handle_termination, print_from_handler, silence_terminal
from cahlib.core.terminal import confirm, print_note, quiet_output, report_stopped, robust_streams
from cahlib.run.environment import build_job, read_environment
from cahlib.run.orphan_reminder import orphan_reminder

if TYPE_CHECKING:
    from cahlib.engine.fork_server import ForkServer
    from cahlib.run.result import RunResult
    from cahlib.run.scrapers import EngineFactory

_T = TypeVar("_T")

#: What the command exits with, whichever it is.
EXIT_CODES = {
    0: "done",
    1: "failed in part or whole, or problems were found",
    2: "not started: a mistake in the command or its settings, or no as an answer",
    3: "stopped early by Ctrl-C, SIGTERM, a closed terminal, --hours or --max-cost; run the same "
    "command again to continue",
    130: "interrupted at once, by a second Ctrl-C",
    141: "the reader of the output has gone",
}

#: The commands by what they are for, as `cah --help` lists them.
COMMAND_GROUPS = {
    "make a dataset": ("run", "demo", "retry"),
    "look at it": ("inspect", "browse", "why"),
    "choose, and score again": ("select", "score", "dedup"),
    "keep it sound": ("verify", "repair", "purge"),
    "work with more machines, and with others": ("swarm", "tracker", "worker", "gpu"),
    "besides": ("blocklist", "guide", "completion"),
}


def _epilog() -> str:
    codes = (
        textwrap.fill(f"{code:<5}{what}", 58, initial_indent="  ", subsequent_indent=" " * 7)
        for code, what in EXIT_CODES.items()
    )
    listed = "\n".join(codes)
    return (
        f"exit codes, the same for every command:\n{listed}\n\n"
        "Results go to stdout, everything else to stderr. `cah COMMAND --help` explains a command."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, one of `EXIT_CODES`.

    Without ``arguments`` they are those of the process, which then ends.
    """
    if arguments is None:
        begin_own_process()
    try:
        with robust_streams(output=False):
            parser = _parser()
            chosen = parser.parse_args(arguments)
            if not hasattr(chosen, "act"):
                parser.print_help(sys.stderr)
                return 2
        # A run goes on where nobody reads its lines, but an object for scripts must arrive whole.
        unread = hasattr(chosen, "works") and not chosen.json
        with robust_streams(output=unread), quiet_output(chosen.quiet):
            return _done(chosen)
    except KeyboardInterrupt:
        with robust_streams(output=True):
            start = "\n" if sys.stderr.isatty() else ""  # which shows ^C where the line was
            print(
                f"{start}cah: interrupted; run the same command again to continue.",
                file=sys.stderr,
            )
        return 130
    except BrokenPipeError:  # `cah verify DATASET | head`: nobody reads on
        return 141
    except OSError as error:
        if is_disk_full(error):
            sentence = str(disk_full_error(error.filename or "what is printed"))
        elif not (sentence := describe_unusable_file(error)):
            raise
        with robust_streams(output=True):
            print(f"cah: {sentence}", file=sys.stderr)
        return 1


def _done(chosen: argparse.Namespace) -> int:
    """Run a command, print its error, and return its exit code."""
    try:
        _require_places(chosen)
        told = read_environment()
        with _logged(chosen), _reminded(chosen, told.get("HCLOUD_TOKEN", "")):
            return _act(chosen)
    except CahError as error:
        print(f"cah: {error}", file=sys.stderr)
        if isinstance(error, MissingSetting):
            print(f"For example: {chosen.example}", file=sys.stderr)
        return error.exit_code


def _act(chosen: argparse.Namespace) -> int:
    try:
        return int(chosen.act(chosen))
    except ModuleNotFoundError as error:
        raise missing_library_error(error, getattr(chosen, "extra", "")) from error


def _require_places(chosen: argparse.Namespace) -> None:
    """Raise ConfigError if a dataset that a command names cannot be where it says."""
    if not hasattr(chosen, "dataset_argument"):
        return
    from cahlib.dataset.manifest import require_place

    named = getattr(chosen, chosen.dataset_argument)
    for each in [named] if isinstance(named, str) else named:
        require_place(each)


def _logged(chosen: argparse.Namespace) -> AbstractContextManager[None]:
    """Keep log lines out of the terminal while a run's command works."""
    if not hasattr(chosen, "works"):
        return nullcontext()
    return logs.log_to_run(RunDirectory(_output(chosen)).path, print_message)


def _output(chosen: argparse.Namespace) -> Path:
    """Return the folder of the dataset that a command works on."""
    given = {"output": chosen.output} if hasattr(chosen, "output") else {}
    told = read_environment()
    return build_job(
        given, {"CAH_OUTPUT": told.get("CAH_OUTPUT", Job().output.output)}
    ).output.folder


def _reminded(chosen: argparse.Namespace, token: str) -> AbstractContextManager[None]:
    """Remind of orphaned servers, except those that the command itself handles."""
    if hasattr(chosen, "all_runs") and chosen.all_runs:
        return nullcontext()
    own = RunDirectory(_output(chosen)).swarm if hasattr(chosen, "looks_after") else None
    return orphan_reminder(token, own, print_message, run=getattr(chosen, "run", ""))


@cache  # some 300 options, for the notebook's and the tests' many commands in one process
def _parser() -> Parser:
    parser = Parser(
        prog="cah",
        description="Turn Common Crawl into image–text datasets.",
        example="cah demo",
        epilog=_epilog(),
    )
    parser.add_argument("--version", action="version", version=f"cah {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    commands.groups = COMMAND_GROUPS  # type: ignore[attr-defined]
    run = commands.add_parser(
        "run",
        help="turn shards of a crawl into a dataset; run it again to continue",
        description="Turn shards of a crawl into a dataset. Run the same command again to continue "
        "where it stopped.\nEvery option can also be set as CAH_<OPTION> in the environment or in "
        ".env.",
        example="cah run --crawl CC-MAIN-2024-10 --shards 2 --contact https://example.org/crawl",
    )
    run.add_json()
    run.add_settings("run")
    run.set_defaults(act=_run, looks_after=True, works=True, extra="gpu")
    demo = commands.add_parser(
        "demo",
        help="make a dataset from an embedded web with an embedded model, offline",
        example="cah demo --output demo-dataset",
    )
    demo.add_argument("--output", default="demo-dataset", help="folder of the demo's dataset")
    demo.add_argument("--open", action="store_true", help="open the report in a browser")
    demo.add_json()
    demo.set_defaults(act=_demo, works=True, extra="gpu")
    retry.add(commands, _retry)
    worker.add(commands, lambda chosen, work: _watched(_job(chosen), work))
    tracker.add(commands)
    swarm.add(commands, lambda chosen: (_job(chosen), read_environment()))
    blocklist.add(commands)
    check_dataset.add(commands)
    change_dataset.add(commands)
    score.add(commands)
    browse.add(commands)
    select.add(commands)
    why.add(commands)
    guide.add(commands)
    completion.add(commands, parser)
    parser.set_defaults(json=False)  # for the commands that do not offer it
    for _, each in parser.commands():
        each.add_quiet()
    return parser


def _run(chosen: argparse.Namespace) -> int:
    from cahlib.run.scrapers import scraper_server

    job = _job(chosen)
    with scraper_server(job) as server:
        from cahlib.run.quote import make_quote

        _check(job)
        secrets = _take_secrets(job)
        quote = make_quote(job, secrets["tokens"])
        print_note(*filter(None, (quote.table, *quote.sentences)))
        if quote.servers and not confirm(f"Order {quote.order}?"):
            return 2
        return _follow(chosen, job, _scraping(secrets, server))


def _retry(job: Job, shards: int, work: Callable[..., _T]) -> _T | None:
    """Do the retries of a job, with as many shards; return None if its servers are not wanted."""
    from cahlib.run.quote import make_quote

    _check(job)
    secrets = _take_secrets(job)
    if job.place.has_servers and shards:
        quote = make_quote(job, secrets["tokens"], shards=shards)
        print_note(*filter(None, (quote.table, *quote.terms, quote.crash_note)))
        if not confirm(f"Order {quote.order}?"):
            return None
    return _watched(job, partial(work, scraping=_scraping(secrets)))


def _check(job: Job) -> None:
    """Raise ConfigError for a job that cannot run, before anything is made or ordered."""
    from cahlib.run.open_run import check_settings, require_described_same

    check_settings(job)
    require_described_same(job)


def _take_secrets(job: Job) -> dict[str, str]:
    """Return the cloud's tokens and the watchdog's, which no process inherits from now on."""
    from cahlib.run.scrapers import watchdog_config

    names = {"tokens": "HCLOUD_TOKEN", "watchdog": WATCHDOG_VARIABLE}
    told = read_environment()
    secrets = {name: told.get(variable, "") for name, variable in names.items()}
    # Scrapers and other processes inherit the environment. Emptied, not deleted: the thread that
    # reminds of servers may go through it for its proxies, and fail at what vanishes.
    os.environ.update({variable: "" for variable in names.values() if variable in os.environ})
    watchdog_config(job, secrets["watchdog"], secrets["tokens"])
    return secrets


def _job(chosen: argparse.Namespace) -> Job:
    """Return the Job of the options typed, the environment and .env."""
    return build_job(typed_settings(chosen), read_environment())


def _watched(job: Job, work: Callable[..., _T]) -> _T:
    """Do a job's work, showing its progress to the user, who may stop it."""
    from cahlib.commands.console import progress_view

    with _stoppable() as stop, progress_view() as listener:
        return work(job, listener, stop=stop)


def _scraping(secrets: Mapping[str, str], server: ForkServer | None = None) -> EngineFactory:
    """Return what opens the engine of a run, by the server of its scrapers if it has begun."""
    from cahlib.run.scrapers import open_local_scrapers, open_scrapers

    if server:
        return partial(open_local_scrapers, server=server)
    tokens, watchdog = (secrets.get(name, "") for name in ("tokens", "watchdog"))
    return partial(open_scrapers, tokens=tokens, watchdog=watchdog, report=print_message)


def _follow(chosen: argparse.Namespace, job: Job, scraping: EngineFactory) -> int:
    with uncollected():
        from cahlib.run.pipeline import run
    with pandas_hidden():
        import pyarrow as pa

        pa.array([0])
    outcome = _watched(job, partial(run, scraping=scraping))
    print_run(chosen, outcome, _summary(outcome))
    if outcome.stopped:
        return report_stopped(outcome.shards.open + outcome.shards.committed, outcome.shards.total)
    return 1 if outcome.shards.failed or outcome.faults else 0


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """Provide an event that the first Ctrl-C (or SIGTERM) sets; the second one interrupts.

    A terminal that is closed sets it too, but never interrupts: it may signal twice.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            silence_terminal()
        elif stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print_from_handler(
            "finishing what is being scored; press Ctrl-C again to leave at once "
            "(finished work is kept)."
        )

    with handle_termination(on_signal):
        yield stop


def _summary(outcome: RunResult) -> list[str]:
    from cahlib.core.records import Stage
    from cahlib.core.wording import plural

    shards, stats = outcome.shards, outcome.stats
    return [
        f"{plural(stats.left[Stage.JUDGE], 'pair')} from "
        f"{plural(stats.entered[Stage.CHOOSE], 'link')} in {plural(shards.done, 'shard')}: "
        f"{outcome.folder}",
        f"report: {outcome.folder / 'report.html'}",
    ]


def _demo(chosen: argparse.Namespace) -> int:
    from cahlib import demo
    from cahlib.demo.serve import served_apart
    from cahlib.run.scrapers import scraper_server

    output = os.path.expanduser(chosen.output)
    with scraper_server(Job()) as server, served_apart(demo.port(output)) as web:
        from cahlib.run.open_run import check_settings

        job = demo.job(output, web)
        check_settings(job)
        print_note("The demo's web and its crawl are on loopback; nothing leaves this machine.")
        code = _follow(chosen, job, _scraping({}, server))
    typed = shlex.quote(output)
    print_note(f"`cah inspect {typed}` and `cah verify {typed}` tell more about it.")
    if chosen.open:
        import webbrowser

        webbrowser.open((Path(output) / "report.html").absolute().as_uri())
    return code


if __name__ == "__main__":
    sys.exit(main())
