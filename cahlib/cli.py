"""The command `cah`: a Job from options and environment, its run shown, an exit code."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from cahlib import __version__, logs
from cahlib.commands import blocklist, checked, finished, guide, swarm, tracker, worker
from cahlib.config import Job, settings
from cahlib.console import lasting, stopped_early
from cahlib.errors import CahError, ConfigError, is_full, missing, no_space, unusable
from cahlib.private import FOLDER, WATCHDOG
from cahlib.swarm.signals import ending, hush

if TYPE_CHECKING:
    from cahlib.run import Outcome

T = TypeVar("T")

_GROUPS = {
    "": "you",
    "crawl": "what is read",
    "download": "which images are fetched",
    "judge": "what belongs together",
    "output": "where the dataset goes",
    "place": "where and how long",
}


_EXIT_CODES = """\
exit codes: 0 done; 1 failed; 2 not started, for a mistake in the command or its settings; 3 stopped
early (Ctrl-C, SIGTERM, a closed terminal, a limit of time or cost), and the same command goes on;
130 left at once at the second Ctrl-C; 141 whoever read the output has gone
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code, as `_EXIT_CODES` explains them."""
    try:
        with lasting(output=False):
            parser = _parser()
            chosen = parser.parse_args(arguments)
            if not hasattr(chosen, "act"):
                parser.print_help()
                return 2
        with lasting(output=hasattr(chosen, "works")):
            return _done(chosen)
    except KeyboardInterrupt:
        with lasting(output=True):
            print("cah: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `cah verify DATASET | head`: nobody reads on
        return 141
    except OSError as error:
        if is_full(error):
            sentence = str(no_space(error.filename or "what is printed"))
        elif not (sentence := unusable(error)):
            raise
        with lasting(output=True):
            print(f"cah: {sentence}", file=sys.stderr)
        return 1


def _done(chosen: argparse.Namespace) -> int:
    """Return the exit code of a command, and say what is wrong."""
    try:
        told = environment()
        with _logged(chosen), swarm.reminded(told, _looked_after(chosen), chosen):
            return _act(chosen)
    except CahError as error:
        print(f"cah: {error}", file=sys.stderr)
        return error.exit_code


def _act(chosen: argparse.Namespace) -> int:
    try:
        return int(chosen.act(chosen))
    except ModuleNotFoundError as error:
        raise missing(error, getattr(chosen, "extra", "")) from error


def _logged(chosen: argparse.Namespace) -> AbstractContextManager[None]:
    """Keep log lines out of the terminal while a run's command works."""
    if not hasattr(chosen, "works"):
        return nullcontext()
    return logs.kept(_output(chosen) / "run", swarm.say)


def _output(chosen: argparse.Namespace) -> Path:
    """Return the folder of the dataset that a command works on."""
    given = {"output": chosen.output} if hasattr(chosen, "output") else {}
    return job_from(given, environment()).output.folder


def _looked_after(chosen: argparse.Namespace) -> Path | None:
    """The state of the swarm that the command itself looks after."""
    if not hasattr(chosen, "looks_after"):
        return None
    return _output(chosen) / "run" / "swarm"


def job_from(options: Mapping[str, str], environment: Mapping[str, str]) -> Job:
    """A Job from options; what they leave open comes from CAH_* variables."""
    names = {setting.name for setting in settings()}
    inherited = {
        name: environment[variable]
        for name in names
        if (variable := f"CAH_{name.upper()}") in environment
    }
    return Job.from_values({**inherited, **options})


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command in one line: the usage of `cah run` has sixty."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cah: {message}; `{self.prog} --help` shows what there is.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cah",
        description="Common Crawl into image–text datasets.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cah {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    run = commands.add_parser(
        "run",
        usage="cah run [options]",
        help="turn shards of a crawl into a dataset; run it again to go on",
        description="Turn shards of a crawl into a dataset. The same command again goes on where "
        "it was. Every option can also be set as CAH_<OPTION> in the environment or in .env.",
    )
    _add_settings(run)
    run.set_defaults(act=_run, looks_after=True, works=True, extra="gpu")
    demo = commands.add_parser(
        "demo", help="a whole run on an embedded web with an embedded model, offline"
    )
    demo.add_argument("--output", default="demo-dataset", help="folder of the demo's dataset")
    demo.add_argument("--open", action="store_true", help="open the report in a browser")
    demo.set_defaults(act=_demo, works=True, extra="gpu")
    worker.add(commands, _add_settings, lambda chosen, work: _watched(_job(chosen), work))
    tracker.add(commands)
    swarm.add(commands, _add_settings, lambda chosen: (_job(chosen), environment()))
    blocklist.add(commands)
    inspect = commands.add_parser("inspect", help="print what a dataset holds")
    inspect.add_argument("dataset", help="folder or URL of a dataset")
    inspect.set_defaults(act=_inspect)
    checked.add(commands)
    finished.add(commands)
    guide.add(commands)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for setting in settings():
        flag = "--" + setting.name.replace("_", "-")
        default = setting.default
        if isinstance(default, tuple):
            default = ",".join(default)
        name = "N" if setting.type in (int, float) else setting.name.upper().split("_")[-1]
        extra: dict[str, Any] = {"metavar": name}
        if setting.type is bool:
            # yes and no as texts, so that a bad value gets the same sentence at every door
            extra |= {"nargs": "?", "const": "yes", "metavar": "yes|no"}
            default = "yes" if default else "no"
        elif setting.option.choices:
            extra["metavar"] = "|".join(setting.option.choices)
        bounds = setting.bounds().removeprefix(" of").strip()
        shown = f" ({bounds})" if bounds else ""
        shown += f" [{default}]" if default not in ("", None) else ""
        groups[setting.group].add_argument(
            flag,
            dest=setting.name,
            default=argparse.SUPPRESS,
            help=(setting.option.help + shown).replace("%", "%%"),
            **extra,
        )


def _run(chosen: argparse.Namespace) -> int:
    from cahlib.home import require_described_same
    from cahlib.needs import introduced
    from cahlib.quote import quoted
    from cahlib.scrapers import guard

    job = _job(chosen)
    introduced(job)
    require_described_same(job)  # before anything is made, or servers are asked for
    names = {"tokens": "HCLOUD_TOKEN", "watchdog": WATCHDOG}
    told = environment()
    secrets = {name: told.get(variable, "") for name, variable in names.items()}
    # Scrapers and other processes inherit the environment. Emptied, not deleted: the thread that
    # reminds of servers may go through it for its proxies, and fail at what vanishes.
    os.environ.update({variable: "" for variable in names.values() if variable in os.environ})
    guard(job, secrets["watchdog"], secrets["tokens"])
    quote = quoted(job, secrets["tokens"])
    print(*filter(None, (quote.table, *quote.sentences)), sep="\n")
    if quote.servers and not swarm.agreed(f"Order {quote.order}?"):
        return 2
    return _follow(job, **secrets)


def environment() -> dict[str, str]:
    """The environment, with what .env adds. Raises ConfigError for one that is no text."""
    from dotenv import dotenv_values

    try:
        told = {k: v for k, v in dotenv_values(".env").items() if v is not None} | os.environ
    except UnicodeDecodeError as error:
        raise ConfigError(".env is not a text in UTF-8; store it as one.") from error
    if FOLDER in told:  # it is no setting of a job: where secrets lie is told to nobody
        os.environ[FOLDER] = told[FOLDER]
    return told


def _job(chosen: argparse.Namespace) -> Job:
    """The Job that was typed, with what the environment and .env add."""
    given = {s.name: getattr(chosen, s.name) for s in settings() if hasattr(chosen, s.name)}
    return job_from(given, environment())


def _watched(job: Job, work: Callable[..., T]) -> T:
    """Do a job's work under the eyes of the user, who may stop it."""
    from cahlib.console import view

    with _stoppable() as stop, view() as listener:
        return work(job, listener, stop=stop)


def _follow(job: Job, tokens: str = "", watchdog: str = "") -> int:
    from cahlib.run import run
    from cahlib.scrapers import scrapers

    scraping = partial(scrapers, tokens=tokens, watchdog=watchdog, tell=swarm.say)
    outcome = _watched(job, partial(run, scraping=scraping))
    _tell(outcome)
    if outcome.stopped:
        return stopped_early(outcome.shards.open + outcome.shards.sealed, outcome.shards.total)
    return 1 if outcome.shards.failed or outcome.faults else 0


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second one interrupts.

    A terminal that is closed sets it as well, and does not interrupt: it may say so twice.
    """
    stop = threading.Event()

    def heard(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            hush()
        elif stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print(
            "\ncah: finishing the shard that is being judged; Ctrl-C again leaves at once "
            "(nothing that is done gets lost).",
            file=sys.stderr,
        )

    before = {n: signal.signal(n, heard) for n in ending()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(outcome: Outcome) -> None:
    from cahlib.records import Stage
    from cahlib.words import plural

    shards, tally = outcome.shards, outcome.tally
    print(
        f"{plural(tally.left[Stage.JUDGE], 'pair')} from "
        f"{plural(tally.entered[Stage.CHOOSE], 'link')} in {plural(shards.done, 'shard')}: "
        f"{outcome.folder}"
    )
    print(f"report: {outcome.folder / 'report.html'}")
    for each in outcome.warnings:
        print(f"cah: {each}", file=sys.stderr)
    for shard, error in outcome.errors:
        print(f"cah: shard {shard} failed: {error}", file=sys.stderr)
    if outcome.errors:
        print("cah: the same command tries them again.", file=sys.stderr)
    for fault in outcome.faults:
        print(f"cah: {fault}", file=sys.stderr)


def _demo(chosen: argparse.Namespace) -> int:
    from cahlib import demo
    from cahlib.demo import world

    print("The demo's web and its crawl are on loopback; nothing leaves this machine.")
    output = os.path.expanduser(chosen.output)
    with world.build().serve(demo.port(output)) as web:
        code = _follow(demo.job(output, web))
    typed = shlex.quote(output)
    print(f"cah inspect {typed}, cah verify {typed} tell more of it.")
    if chosen.open:
        import webbrowser

        webbrowser.open((Path(output) / "report.html").absolute().as_uri())
    return code


def _inspect(chosen: argparse.Namespace) -> int:
    from cahlib.dataset.show.summary import summary_lines

    for line in summary_lines(chosen.dataset):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
