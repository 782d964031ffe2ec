"""A stand-in for Hetzner's API on loopback, which the real client talks to.

It keeps servers in memory; `hosts` may turn them into machines. Faults are asked for by the number
of the call, so that a test can go through all of them.
"""

import itertools
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from urllib.parse import parse_qs, urlsplit

PLACES = ("fsn1", "nbg1", "hel1")
#: name: cores, GB, architecture, euros an hour
TYPES = {
    "cx23": (2, 4, "x86", 0.006),
    "cax11": (2, 4, "arm", 0.007),
    "cx33": (4, 8, "x86", 0.018),
    "cpx12": (1, 2, "x86", 0.011),
    "tiny": (1, 1, "x86", 0.001),
}
IPV4 = 0.001


class No(Exception):
    """The cloud's refusal."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message or code.replace("_", " ")


@dataclass
class Account:
    """What one token reaches."""

    limit: int = 5
    cores: int = 1000  #: its limit of these
    writes: bool = True
    things: dict[str, dict[int, dict]] = field(
        default_factory=lambda: {"servers": {}, "ssh_keys": {}, "firewalls": {}}
    )


class Nothing:
    """Hosts for servers that are only listed."""

    def start(self, server: dict, user_data: str) -> str:
        return f"127.0.{server['id'] // 250}.{server['id'] % 250 + 2}"

    def stop(self, server: dict) -> None:
        pass


@dataclass
class Cloud:
    """The state of the stand-in, for tests to set and to ask."""

    accounts: dict[str, Account]
    hosts: object = field(default_factory=Nothing)
    empty: set[tuple[str, str]] = field(default_factory=set)  #: (type, place) listed, but sold out
    closed: set[tuple[str, str]] = field(default_factory=set)  #: (type, place) listed as sold out
    currency: str = "EUR"
    lingers: int = 0  #: how many times a server is listed after it was deleted
    #: what to do at a call, by its number from 1: "error", "timeout", "interrupt", "nonsense", a No
    faults: Callable[[int, str], object] = lambda number, what: None
    calls: list[str] = field(default_factory=list)
    url: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def servers(self, token: str | None = None) -> list[dict]:
        """All servers, or those of one token."""
        those = [self.accounts[token]] if token else self.accounts.values()
        return [server for each in those for server in list(each.things["servers"].values())]

    def stranger(self, token: str) -> dict:
        """A server in the account that is not ours."""
        body = {"name": "stranger", "server_type": "cx23", "location": "fsn1"}
        return self._make(self.accounts[token], "servers", body)["server"]

    def answer(self, method: str, target: str, token: str, body: dict) -> dict:
        """What the API answers to a request."""
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        account = self.accounts.get(token)
        if account is None:
            raise No(401, "unauthorized", "unable to authenticate")
        if method != "GET" and not account.writes:
            raise No(403, "token_readonly", "token is only allowed to read")
        kind, _, rest = url.path.removeprefix("/v1/").partition("/")
        with self._lock:
            if kind in account.things:
                return self._thing(account, kind, method, rest, query, body)
            return self._fixed(kind, query)

    def _thing(self, account, kind, method, rest, query, body):
        things = account.things[kind]
        if method == "GET" and not rest:
            self._fade(things)
            return _pages(kind, [t for t in things.values() if _matches(t, query)], query)
        if method == "POST" and not rest:
            return self._make(account, kind, body)
        if rest.endswith("/actions/set_rules"):
            things[int(rest.split("/")[0])]["rules"] = _ruled(body)
            return {"actions": []}
        number = int(rest.split("/")[0])
        if number not in things:
            raise No(404, "not_found", "not found")
        if method == "DELETE":
            return self._delete(account, kind, number)
        if method == "PUT":
            things[number] |= body
        return {kind[:-1]: things[number]}

    def _make(self, account, kind, body):
        things = account.things[kind]
        if any(each["name"] == body["name"] for each in things.values()):
            raise No(409, "uniqueness_error", "name is already used")
        thing = {
            "id": next(self._ids),
            "name": body["name"],
            "labels": body.get("labels") or {},
            "created": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        }
        if kind == "servers":
            self._boot(account, thing, body)
        if kind == "firewalls":
            thing |= {"rules": _ruled(body), "applied_to": []}
        if kind == "ssh_keys":
            thing |= {"public_key": body["public_key"], "fingerprint": "00"}
        things[thing["id"]] = thing
        extra = {"action": _action(), "next_actions": [], "root_password": None}
        return {kind[:-1]: thing} | (extra if kind == "servers" else {})

    def _boot(self, account, server, body):
        kind, place = body["server_type"], body["location"]
        if kind not in TYPES or place not in PLACES:
            raise No(422, "invalid_input", "unsupported location for server type")
        if len(account.things["servers"]) >= account.limit:
            raise No(403, "resource_limit_exceeded", "server limit exceeded")
        taken = sum(s["server_type"]["cores"] for s in account.things["servers"].values())
        if taken + TYPES[kind][0] > account.cores:
            raise No(403, "resource_limit_exceeded", "core limit exceeded")
        if (kind, place) in self.empty:
            raise No(412, "resource_unavailable", "no capacity")
        user_data = body.get("user_data") or ""
        assert len(user_data.encode()) <= 32 * 1024
        address = self.hosts.start(server, user_data)
        ipv4 = {"id": server["id"], "ip": address, "blocked": False, "dns_ptr": ""}
        walls = [{"id": w["firewall"], "status": "applied"} for w in body.get("firewalls") or ()]
        server |= {
            "status": "running",
            "server_type": _type(kind, self.closed),
            "location": {"id": PLACES.index(place), "name": place},
            "public_net": {"ipv4": ipv4, "ipv6": None, "floating_ips": [], "firewalls": walls},
        }

    def _delete(self, account, kind, number):
        thing = account.things[kind].pop(number)
        if kind == "servers":
            self.hosts.stop(thing)
            if self.lingers:
                account.things[kind][number] = thing | {"status": "deleting", "looks": self.lingers}
            return {"action": _action()}
        if kind == "firewalls":
            held = (s["public_net"]["firewalls"] for s in account.things["servers"].values())
            if any(wall["id"] == number for walls in held for wall in walls):
                account.things[kind][number] = thing
                raise No(422, "resource_in_use", "firewall is in use")
        return {}

    def _fade(self, things):
        """One look less at what is being deleted."""
        for number, thing in list(things.items()):
            if thing.get("looks") == 0:
                del things[number]
            elif "looks" in thing:
                thing["looks"] -= 1

    def _fixed(self, kind, query):
        if kind == "server_types":
            return _pages(kind, [_type(name, self.closed) for name in TYPES], query)
        if kind == "images":
            wanted = query.get("architecture", "x86"), query.get("name", "debian-12")
            image = {"id": 1, "name": wanted[1], "architecture": wanted[0], "type": "system"}
            return _pages(kind, [image], query)
        if kind == "pricing":
            prices = [{"location": place, "price_hourly": _euros(IPV4)} for place in PLACES]
            return {
                "pricing": {
                    "currency": self.currency,
                    "primary_ips": [{"type": "ipv4", "prices": prices}],
                }
            }
        raise No(410, "gone", "this is no longer there")


@contextmanager
def serve(cloud: Cloud, *, host: str = "127.0.0.1") -> Iterator[Cloud]:
    """The stand-in on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer's body waits 40 ms for its head's ACK

        def _any(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            what = f"{self.command} {urlsplit(self.path).path.removeprefix('/v1')}"
            with cloud._lock:
                cloud.calls.append(what)
                fault = cloud.faults(len(cloud.calls), what)
            try:
                if fault == "error":
                    raise No(500, "service_error", "a fault asked for")
                if isinstance(fault, No):
                    raise fault
                status, answer = 200, cloud.answer(self.command, self.path, token, body)
                if fault == "nonsense":
                    answer = {}
            except No as no:
                status, answer = no.status, {"error": {"code": no.code, "message": no.message}}
            if fault == "interrupt":
                os.kill(os.getpid(), signal.SIGINT)
            if fault in ("timeout", "interrupt"):
                cloud.closing.wait(3)  # carried out, but never answered
                self.close_connection = True
                return
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = _any

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    cloud.url = f"http://{host}:{server.server_port}/v1"
    try:
        yield cloud
    finally:
        cloud.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
        for each in cloud.servers():
            cloud.hosts.stop(each)


def _ruled(body):
    """The rules of a firewall, which the API refuses if one has no end or too many."""
    empty = {"source_ips": [], "destination_ips": [], "port": None, "description": None}
    rules = [empty | rule for rule in body.get("rules", ())]
    end = {"in": "source_ips", "out": "destination_ips"}
    ends = [rule[end[rule["direction"]]] for rule in rules]
    if len(rules) > 50 or not all(0 < len(each) <= 100 for each in ends):
        raise No(422, "invalid_input", "invalid rules")
    if not all(ip_network(network) for each in ends for network in each):
        raise No(422, "invalid_input", "invalid network")
    return rules


def _matches(thing, query):
    if "name" in query and thing["name"] != query["name"]:
        return False
    selector = query.get("label_selector", "")
    wanted = (re.split("==?", part) for part in selector.split(",") if part)
    return all(thing["labels"].get(key) == value for key, value in wanted)


def _pages(kind, things, query):
    page, size = int(query.get("page", 1)), int(query.get("per_page", 25))
    last = max(1, -(-len(things) // size))
    meta = {
        "page": page, "per_page": size, "previous_page": page - 1 or None,
        "next_page": page + 1 if page < last else None, "last_page": last,
        "total_entries": len(things),
    }  # fmt: skip
    return {kind: things[(page - 1) * size : page * size], "meta": {"pagination": meta}}


def _type(name, closed):
    cores, memory, architecture, price = TYPES[name]
    return {
        "id": list(TYPES).index(name) + 1,
        "name": name,
        "cores": cores,
        "memory": memory,
        "architecture": architecture,
        "cpu_type": "dedicated" if name.startswith("ccx") else "shared",
        "prices": [{"location": p, "price_hourly": _euros(price)} for p in PLACES] if price else [],
        "locations": [
            {
                "id": PLACES.index(place), "name": place, "deprecation": None,
                "available": (name, place) not in closed, "recommended": True,
            }
            for place in PLACES
        ],
    }  # fmt: skip


def _euros(price):
    return {"net": f"{price / 1.19:.10f}", "gross": f"{price:.10f}"}


def _action():
    return {"id": 1, "command": "any", "status": "success", "progress": 100, "resources": [],
            "started": None, "finished": None, "error": None}  # fmt: skip
