"""Kaggle through its own package: an account's quota, kernels and private inputs.

The package prints, exits, and reports some errors as success; here every failure is a `CahError`,
and every call has a time limit. This module does not know what a kernel does.
"""

from __future__ import annotations

import contextlib
import io
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeVar

from cahlib.core.background import capture
from cahlib.core.errors import ConfigError, RunError
from cahlib.core.retry import retry, wait_until

_T = TypeVar("_T")

#: Seconds for a request, and for a transfer of files.
_ASK, _BRING = 60, 1800

#: Seconds between attempts while the network is unavailable.
_PAUSES = (1, 2, 4, 8, 16)

#: Kaggle's states of a kernel that has ended.
ENDED_STATES = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")

_LOGIN = (
    "Kaggle credentials are missing or invalid: create an API token at "
    "https://www.kaggle.com/settings and set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY."
)


class KaggleUnavailable(RunError):
    """Kaggle cannot be reached at the moment."""


class KernelRefused(RunError):
    """Kaggle rejected a kernel; none was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelState:
    """A kernel's latest session."""

    name: str  #: QUEUED, RUNNING, COMPLETE, ERROR …; "" if there is none
    why: str = ""  #: it failed

    @property
    def over(self) -> bool:
        return self.name in ENDED_STATES or not self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuQuota:
    """The GPU hours left this week."""

    hours: float
    renewed: datetime | None


class KaggleAccount:
    """One account. Raises ConfigError without credentials that count, Away without a network."""

    def __init__(self) -> None:
        self._api = _within(_ASK, _authenticated)
        self.user: str = self._api.config_values.get(self._api.CONFIG_NAME_USER) or ""

    @property
    def secrets(self) -> list[str]:
        """Return the credentials in use, from the environment or a file."""
        names = (self._api.CONFIG_NAME_KEY, self._api.CONFIG_NAME_TOKEN)
        return [secret for name in names if (secret := self._api.config_values.get(name))]

    def quota(self) -> GpuQuota | None:
        """Return the GPU hours left, or None if Kaggle does not tell."""
        try:
            told = self._ask(self._api.quota_view)
        except _Unknown:
            return None
        gpu = told.gpu_quota
        if gpu is None or gpu.total_time_allowed is None:
            return None
        used = [each.total_seconds() for each in (gpu.time_used, gpu.time_reserved) if each]
        left = gpu.total_time_allowed.total_seconds() - sum(used)
        return GpuQuota(hours=max(left, 0) / 3600, renewed=told.quota_refresh_time)

    def bring(self, folder: Path, slug: str, *, timeout: float = 600, pause: float = 5) -> None:
        """Upload a folder's files as a private dataset, and wait until kernels can read it."""
        name = f"{self.user}/{slug}"
        about = {"id": name, "title": slug, "licenses": [{"name": "other"}]}
        (folder / "dataset-metadata.json").write_text(json.dumps(about))
        made = self._ask(
            lambda: self._api.dataset_create_new(str(folder), public=False, quiet=True), _BRING
        )
        if made.error or (made.status or "ok").lower() == "error":
            raise RunError(f"Kaggle rejected the kernel's private input: {made.error}")
        status = ""

        def is_settled() -> bool:
            nonlocal status
            status = self._status(name)
            return status in ("ready", "failed", "deleted")

        wait_until(is_settled, timeout=timeout, pause=pause)
        if status != "ready":
            raise RunError(f"the kernel's private input {name} is {status}, not ready.")

    def remove(self, slug: str) -> None:
        """Delete a dataset."""
        self._ask(lambda: self._api.dataset_delete(self.user, slug, no_confirm=True))

    def push(self, folder: Path, *, seconds: float) -> str:
        """Start a kernel from a folder; return its page's URL."""
        try:
            told = self._ask(lambda: self._api.kernels_push(str(folder), str(max(int(seconds), 1))))
        except _Unknown as error:
            raise KernelRefused(_why(_said(error.__cause__ or error))) from error
        wrong = [*(told.invalid_dataset_sources or ()), *(told.invalid_kernel_sources or ())]
        if told.error or wrong:
            raise KernelRefused(_why(told.error or f"it does not find {', '.join(wrong)}"))
        return str(told.url)

    def state(self, kernel: str) -> KernelState:
        """Return the state of a kernel's latest session."""
        try:
            told = self._ask(lambda: self._api.kernels_status(kernel))
        except _Unknown:
            return KernelState(name="")
        return KernelState(name=told.status.name, why=told.failure_message or "")

    def at_work(self, within: timedelta) -> list[str]:
        """Return the account's running GPU kernels, of those started ``within`` a time."""
        oldest = datetime.now(timezone.utc) - within

        def may_work(each: Any) -> bool:
            begun = each.last_run_time
            late = begun is None or begun.replace(tzinfo=begun.tzinfo or timezone.utc) > oldest
            return late and each.enable_gpu is not False and "/" in each.ref

        try:
            listed = self._ask(lambda: self._api.kernels_list(mine=True, sort_by="dateRun")) or ()
        except _Unknown:  # then the push is refused, if there are too many
            return []
        return [e.ref for e in listed if may_work(e) and not self.state(e.ref).over]

    def log(self, kernel: str) -> Iterator[str]:
        """Yield the kernel's log so far, then live, until the session or the connection ends."""
        with contextlib.suppress(Exception):  # the log is a convenience; the state is what counts
            for event in self._api.kernels_logs_stream(kernel):
                yield str(event.get("data", ""))

    def outputs(self, kernel: str) -> Iterator[tuple[str, str]]:
        """Yield name and URL of each file in a kernel's output."""
        from kagglesdk.kernels.types.kernels_api_service import ApiListKernelSessionOutputRequest

        request = ApiListKernelSessionOutputRequest()
        request.user_name, request.kernel_slug = kernel.split("/")
        request.page_size = 100
        while True:
            page = self._ask(lambda: self._listed(request))
            yield from ((each.file_name, each.url) for each in page.files or ())
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def download(self, url: str, target: Path) -> None:
        """Download a file atomically."""
        import requests

        part = target.with_name(f"{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)

        def fetch() -> None:
            with requests.get(url, stream=True, timeout=_ASK) as answer, part.open("wb") as file:
                answer.raise_for_status()
                for chunk in answer.iter_content(1 << 20):
                    file.write(chunk)

        try:
            self._ask(fetch, _BRING)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _listed(self, request: Any) -> Any:
        with self._api.build_kaggle_client() as client:
            return client.kernels.kernels_api_client.list_kernel_session_output(request)

    def _status(self, name: str) -> str:
        try:
            return str(self._ask(lambda: self._api.dataset_status(name)))
        except _Unknown:  # it is made in the background
            return "coming"

    def _ask(self, call: Callable[[], _T], seconds: float = _ASK) -> _T:
        return _within(seconds, call)


class _Unknown(RunError):
    """Kaggle answers that something does not exist, or is not accessible."""


def _why(refusal: str) -> str:
    """Return a sentence on why a push was rejected, and what to do."""
    said, low = f"Kaggle refused the kernel: {refusal.rstrip('.')}.", refusal.lower()
    if "phone" in low or "verif" in low:
        return (
            f"{said} GPU and internet need a verified phone number; verify yours at "
            "https://www.kaggle.com/settings, then start again."
        )
    if "session count" in low:
        return (
            f"{said} Other kernels of yours are running: wait until one ends, or cancel it on its "
            "page, then start again."
        )
    if "quota" in low:
        return f"{said} The week's GPU hours are used up; try again when they are renewed."
    return f"{said} Nothing is running there."


def _authenticated() -> Any:
    """Return an authenticated API object, suppressing what the package prints."""
    with _secluded():
        from kaggle.api.kaggle_api_extended import KaggleApi
        from kagglesdk import kaggle_client, kaggle_env

        class Api(KaggleApi):  # type: ignore[misc]
            """Asks where KAGGLE_API_ENVIRONMENT says, as the SDK does; its caller (2.2) forgets."""

            def build_kaggle_client(self) -> Any:
                told = self.config_values
                return kaggle_client.KaggleClient(
                    env=kaggle_env.get_env(),
                    username=told.get(self.CONFIG_NAME_USER),
                    password=told.get(self.CONFIG_NAME_KEY),
                    api_token=told.get(self.CONFIG_NAME_TOKEN),
                )

            def with_retry(self, func: Callable[..., _T], *_: Any) -> Callable[..., _T]:
                """Try for half a minute, in silence: the package prints each error as it is."""

                def retried(*arguments: Any, **more: Any) -> _T:
                    return retry(
                        lambda: func(*arguments, **more),
                        errors=Exception,
                        passing=lambda error: isinstance(_translated(error), KaggleUnavailable),
                        pauses=_PAUSES,
                    )

                return retried

        api = Api()
        try:
            api.authenticate()
        except SystemExit as error:
            raise ConfigError(_LOGIN) from error
    return api


@contextlib.contextmanager
def _secluded() -> Iterator[None]:
    """Suppress output, and keep stdin open, which the package's exit() would close."""
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        sys.stdin = before


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Return the result of a call; one that hangs is abandoned on its thread."""
    done: queue.SimpleQueue[Future[_T]] = queue.SimpleQueue()
    work = threading.Thread(target=lambda: done.put(capture(call)), daemon=True, name="kaggle")
    work.start()
    try:
        outcome = done.get(timeout=seconds)
    except queue.Empty:
        raise KaggleUnavailable(f"Kaggle did not answer within {seconds:.0f} seconds.") from None
    error = outcome.exception()
    if error is None or (known := _translated(error)) is error:
        return outcome.result()
    raise known from error


def _translated(error: BaseException) -> BaseException:
    """Return an error of the package as one of ours; a bug unchanged."""
    import requests

    if isinstance(error, requests.HTTPError):
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            return ConfigError(_LOGIN)
        if status in (403, 404):
            return _Unknown(f"Kaggle has no such thing, or not for you ({_said(error)}).")
        if status == 429 or status >= 500:
            return KaggleUnavailable(
                f"Kaggle answers {status}; it may be overloaded, so try again later."
            )
        return RunError(f"Kaggle refused the request: {_said(error)}.")
    if isinstance(error, (requests.RequestException, OSError)):
        return KaggleUnavailable(
            f"Kaggle cannot be reached ({_cause(error)}); see to this machine's network."
        )
    if isinstance(error, ValueError) and "denied" in str(error):
        return _Unknown(f"Kaggle has no such thing, or not for you ({error}).")
    return error


def _said(error: BaseException) -> str:
    """Return Kaggle's message for an error, without the requested URL."""
    answer = getattr(error, "response", None)
    if answer is None:
        return str(error)
    with contextlib.suppress(ValueError, AttributeError):
        if said := str(answer.json().get("message") or ""):
            return said.rstrip(".")
    return f"{answer.status_code} {answer.reason}"


def _cause(error: BaseException) -> str:
    """Return in a few words why there is no answer."""
    import requests

    for kind, words in (
        (requests.exceptions.SSLError, "its certificate is not trusted here"),
        (requests.exceptions.ProxyError, "the proxy does not let it through"),
        (requests.Timeout, "no answer in time"),
        (requests.ConnectionError, "no connection"),
    ):
        if isinstance(error, kind):
            return words
    return getattr(error, "strerror", None) or type(error).__name__
