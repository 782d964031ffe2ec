"""A stand-in for Kaggle's API, which the real `kaggle` package talks to on localhost:7777.

It keeps datasets, and runs kernels as a test says. The port is the package's own (its environment
TEST): where test processes share a network, one at a time has it, and the others wait.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.world.jobs import until

PORT = 7777
TOKEN = "kaggle-token-of-ada"

#: What stands in for Common Crawl's list of crawls.
CRAWLS = {"CAH_KAGGLE_CRAWLS": 'data:application/json,[{"id":"CC-MAIN-2024-10"}]'}


@dataclass
class Kernel:
    """A kernel's latest session."""

    request: dict  #: what was pushed
    states: list[str]  #: what it is told to be, look by look; the last one stays
    log: list[str] = field(default_factory=list)
    outputs: dict[str, bytes] = field(default_factory=dict)
    why: str = ""


@dataclass
class Service:
    """The state of the stand-in, for tests to set and to ask."""

    #: what a push makes of its request
    run: Callable[[dict], Kernel] = lambda request: Kernel(request, ["QUEUED", "RUNNING"])
    refusal: str = ""  #: what the answer to a push says in its error
    hours: tuple[float, float] | None = (30, 4)  #: GPU hours allowed, and used
    lost: bool = False  #: connections are dropped
    #: called before each answer with its name
    before: Callable[[str], None] = lambda name: None
    calls: list[str] = field(default_factory=list)
    datasets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    pushed: list[dict] = field(default_factory=list)
    kernel: Kernel | None = None
    others: dict[str, str] = field(default_factory=dict)  #: states of the account's other kernels
    received: list[bytes] = field(default_factory=list)  #: all bodies, as they came
    _blobs: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def answer(self, name: str, body: dict) -> dict:
        """What a call is answered."""
        return getattr(self, f"_{name}")(body)

    def told(self, name: str, body: bytes, who: str) -> tuple[int, dict]:
        """Status and answer of a request."""
        try:
            if name != "IntrospectToken" and who != f"Bearer {TOKEN}":
                raise No(401, "Unauthenticated")
            return 200, self.answer(name, json.loads(body or b"{}"))
        except No as no:
            return no.status, {"code": no.status, "message": no.message}

    def blob(self, token: str, data: bytes) -> None:
        self._blobs[token] = (self._blobs[token][0], data)

    def _IntrospectToken(self, body):
        good = body["token"] == TOKEN
        return {"active": good, "username": "ada" if good else ""}

    def _GetAcceleratorQuotaStatistics(self, body):
        if self.hours is None:
            raise No(404, "not found")
        allowed, used = (f"{hours * 3600:.0f}s" for hours in self.hours)
        gpu = {"timeUsed": used, "timeReserved": "0s", "totalTimeAllowed": allowed}
        return {"quotaRefreshTime": "2026-11-28T00:00:00.000000Z", "gpuQuota": gpu}

    def _GetDatasetStatus(self, body):
        name = f"{body['ownerSlug']}/{body['datasetSlug']}"
        if name not in self.datasets:
            raise No(404, "not found")
        return {"status": "READY"}

    def _StartBlobUpload(self, body):
        token = f"blob-{len(self._blobs)}"
        self._blobs[token] = (body["name"], b"")
        return {"token": token, "createUrl": f"http://localhost:{PORT}/upload/{token}"}

    def _CreateDataset(self, body):
        name = f"{body['ownerSlug']}/{body['slug']}"
        self.datasets[name] = dict(self._blobs[each["token"]] for each in body["files"])
        self.private[name] = body["isPrivate"]
        return {"ref": name, "status": "ok", "error": ""}

    def _DeleteDataset(self, body):
        name = f"{body['ownerSlug']}/{body['datasetSlug']}"
        self.removed.append(name)
        return {}

    def _SaveKernel(self, body):
        self.pushed.append(body)
        if self.refusal:
            return {"error": self.refusal}
        wrong = [each for each in body["datasetDataSources"] if each not in self.datasets]
        self.kernel = self.run(body)
        return {
            "ref": f"/code/{body['slug']}", "versionNumber": len(self.pushed),
            "url": f"https://www.kaggle.com/code/{body['slug']}", "invalidDatasetSources": wrong,
        }  # fmt: skip

    def _ListKernels(self, body):
        begun = datetime.now(timezone.utc).isoformat()
        return {"kernels": [
            {"ref": ref, "enableGpu": ref != "ada/on-a-cpu", "lastRunTime": begun}
            for ref in self.others
        ]}  # fmt: skip

    def _GetKernelSessionStatus(self, body):
        kernel, ref = self.kernel, f"{body['userName']}/{body['kernelSlug']}"
        if ref in self.others:
            return {"status": self.others[ref]}
        if kernel is None:
            raise No(403, "Permission 'kernels.get' was denied")
        state = kernel.states.pop(0) if len(kernel.states) > 1 else kernel.states[0]
        return {"status": state, "failureMessage": kernel.why}

    def _ListKernelSessionOutput(self, body):
        if self.kernel is None:
            raise No(403, "Permission 'kernels.get' was denied")
        names = sorted(self.kernel.outputs)
        first = int(body.get("pageToken") or 0)
        url = f"http://localhost:{PORT}/output/"
        page = [{"fileName": n, "url": url + n} for n in names[first : first + 7]]
        more = str(first + 7) if first + 7 < len(names) else ""
        return {"files": page, "log": "", "nextPageToken": more}


class No(Exception):
    """The service's refusal."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@contextmanager
def serve(service: Service) -> Iterator[Service]:
    """The stand-in on its port."""
    with _bound(_handler(service)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        wbufsize = -1  # head and body in one packet

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            service.received.append(body)
            name = urlsplit(self.path).path.rpartition("/")[2]
            service.calls.append(name)
            service.before(name)
            if service.lost:
                self.close_connection = True
                return
            status, told = service.told(name, body, self.headers["Authorization"] or "")
            self._say(status, json.dumps(told).encode())

        def do_PUT(self):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            service.received.append(data)
            service.blob(self.path.rpartition("/")[2], data)
            self._say(200, b"{}")

        def do_GET(self):
            kernel = service.kernel
            if service.lost or kernel is None:
                self.close_connection = True
                return
            if self.path.startswith("/output/"):
                return self._say(200, kernel.outputs[self.path.removeprefix("/output/")])
            service.before("log")
            events = "".join(f"data: {json.dumps({'data': line})}\n\n" for line in kernel.log)
            self._say(200, f"{events}data: END_OF_LOG\n\n".encode(), "text/event-stream")

        def _say(self, status, data, kind="application/json"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    return Handler


@contextmanager
def _bound(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """A server on the port, as soon as nobody else has it."""
    made: list[ThreadingHTTPServer] = []

    def free() -> bool:
        with suppress(OSError):
            made.append(ThreadingHTTPServer(("localhost", PORT), handler))
        return bool(made)

    until(free)
    [server] = made
    server.daemon_threads = True
    try:
        yield server
    finally:
        server.server_close()
