"""Which addresses are public, and the resolver that gives no others."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from cahlib.core.config import Download
from cahlib.core.errors import ConfigError
from cahlib.fetch import addresses, resolver
from cahlib.fetch.addresses import NotPublicError, record_types
from cahlib.fetch.outage_monitor import OutageTimings
from cahlib.fetch.resolver import (
    NameServers,
    NetworkConfig,
    NoAddressError,
    NoAnswerError,
    Resolver,
)
from tests.world.names import name_server

PRIVATE = """
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 127.0.0.1 127.255.255.255
169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.0.2.1 192.88.99.1 192.168.0.1 198.18.0.1
198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255
:: ::1 ::ffff:8.8.8.8 ::ffff:127.0.0.1 ::7f00:1 64:ff9b::808:808 64:ff9b:1::1 100::1 fc00::1
fd12:3456::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1 2001::1 2001:10::1 2001:20::1 2001:db8::1
2002:7f00:1::1 2002:808:808::1 3fff::1 4000::1 nonsense
""".split()  # fmt: skip
PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 126.1.1.1 128.0.0.1 169.253.1.1
172.15.0.1 172.32.0.1 192.0.1.1 192.167.0.1 198.17.0.1 198.20.0.1 223.255.255.255
2001:4860:4860::8888 2606:4700::1111 2a01:4f8::1 2003::1
""".split()


def test_which_addresses_are_public():
    assert [address for address in PRIVATE if addresses.is_public(address)] == []
    assert [address for address in PUBLIC if not addresses.is_public(address)] == []


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7f.0.0.0x1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("example.org", None),
        ("1.example.org", None),
        ("127.0.0.1.example.org", None),
        ("cafe", None),
        ("", None),
    ],
)
def test_hosts_that_are_addresses(host, address):
    found = addresses.parse_ip(host)
    assert found == (addresses.ip_address(address) if address else None)


def test_sockets_are_made_for_public_addresses_only():
    make = addresses.socket_factory(None)
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    make((*info, ("8.8.8.8", 80))).close()
    with pytest.raises(NotPublicError):
        make((*info, ("10.0.0.1", 80)))


def test_a_replayed_web_is_the_only_place():
    make = addresses.socket_factory(("127.0.0.1", 8000))
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    make((*info, ("127.0.0.1", 8000))).close()
    for place in [("127.0.0.1", 8001), ("127.0.0.2", 8000), ("8.8.8.8", 80)]:
        with pytest.raises(NotPublicError):
            make((*info, place))


def test_replay_is_read_from_the_settings():
    assert resolver.network_config(Download()).only is None
    assert resolver.network_config(Download(replay="127.0.0.1:8000")).only == ("127.0.0.1", 8000)
    assert resolver.network_config(Download(replay="[::1]:80")).only == ("::1", 80)
    assert resolver.network_config(Download(replay="localhost:1")).only[1] == 1


@pytest.mark.parametrize("replay", ["nonsense", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999"])
def test_a_replay_that_is_no_place_is_refused(replay):
    with pytest.raises(ConfigError, match="replay: .* HOST:PORT"):
        resolver.network_config(Download(replay=replay))


class Names:
    """A lookup by a table that counts how often it is asked."""

    def __init__(self, **table):
        self.table, self.asked = table, []

    async def __call__(self, host):
        self.asked.append(host)
        await asyncio.sleep(0)
        if host not in self.table:
            raise NoAddressError(host)
        return self.table[host]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def resolving(names, *hosts, clock=None):
    """What each host resolves to, in turn: the addresses, or the kind of error."""

    async def main():
        resolver, found = Resolver(NetworkConfig(lookup=names), clock=clock or Clock()), []
        for host in hosts:
            if isinstance(host, float):
                clock.now += host
                continue
            try:
                found.append([each["host"] for each in await resolver.resolve(host, 80)])
            except OSError as error:
                found.append(type(error))
        await resolver.close()
        return found

    return asyncio.run(main())


def test_what_is_not_public_is_left_out():
    names = Names(mixed=["10.0.0.1", "8.8.8.8", "::1"], inside=["192.168.1.1", "fd00::1"])
    assert resolving(names, "mixed", "inside", "lost") == [
        ["8.8.8.8"],
        NotPublicError,
        NoAddressError,
    ]


def test_answers_and_failures_are_remembered_for_a_while():
    names, clock = Names(a=["8.8.8.8"], inside=["10.0.0.1"]), Clock()
    resolving(names, "a", "lost", "inside", 30.0, "a", "lost", "inside", clock=clock)
    assert names.asked == ["a", "lost", "inside"]
    resolving(names, "a", "lost", 100.0, "a", "lost", 250.0, "a", clock=clock)
    assert names.asked[3:] == ["a", "lost", "lost", "a"]


def test_many_askers_of_one_name_share_the_question():
    names = Names(a=["8.8.8.8"])

    async def main():
        resolver = Resolver(NetworkConfig(lookup=names))
        found = await asyncio.gather(*(resolver.resolve("a", port) for port in range(50)))
        await resolver.close()
        return {each["host"] for results in found for each in results}

    assert asyncio.run(main()) == {"8.8.8.8"}
    assert names.asked == ["a"]


def test_an_asker_who_leaves_does_not_end_the_others_question():
    names = Names(a=["8.8.8.8"])

    async def main():
        resolver = Resolver(NetworkConfig(lookup=names))
        first, second = (asyncio.create_task(resolver.resolve("a", 80)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        found = await second
        await resolver.close()
        return found

    assert asyncio.run(main())[0]["host"] == "8.8.8.8"


def test_the_real_lookup_asks_name_servers():
    table = {
        "four.example": [(socket.AF_INET, "8.8.8.8"), (socket.AF_INET, "8.8.4.4")],
        "neither.example": [],
    }

    async def main(server):
        lookup, found = NameServers([server]), {}
        for name in [*table, "lost.example", "bad..name", "a" * 300]:
            try:
                found[name] = await lookup(name)
            except NoAddressError:
                found[name] = None
        await lookup.close()
        return found

    with name_server(table) as server:
        found = asyncio.run(main(server))
    assert found == {
        "four.example": ["8.8.8.8", "8.8.4.4"],
        "neither.example": None,
        "lost.example": None,
        "bad..name": None,
        "a" * 300: None,
    }


def test_a_name_server_may_be_slow_that_was_quick_before():
    """As where it has to ask others first; c-ares tries again after 0.25 s, then 0.5, and 1."""

    class Deaf:
        left = 0

        def is_set(self):
            self.left -= 1
            return self.left >= 0

    async def main(server):
        servers = NameServers([server])
        for name in "abcd":
            await servers(name)
        deaf.left = 3 * len(record_types())
        found = await servers("slow")
        await servers.close()
        return found

    deaf, table = Deaf(), dict.fromkeys([*"abcd", "slow"], [(socket.AF_INET, "8.8.8.8")])
    with name_server(table, silent=deaf) as server:
        assert asyncio.run(main(server)) == ["8.8.8.8"]
    assert deaf.left < 0


def test_a_name_without_an_answer_is_looked_up_once_more_however_long_it_took():
    failed, names = asyncio.Event(), Names(a=["8.8.8.8"], b=["8.8.8.8"])

    async def lookup(host):
        found = await names(host)
        if len(names.asked) == 1:
            await asyncio.sleep(1.1)
            failed.set()
            raise NoAnswerError(host)
        return found

    async def main():
        resolver = Resolver(NetworkConfig(lookup=lookup))
        asking = asyncio.create_task(resolver.resolve("a", 80))
        await failed.wait()
        await resolver.resolve("b", 80)  # the proof that the network works
        return (await asking)[0]["host"]

    assert asyncio.run(main()) == "8.8.8.8"
    assert names.asked == ["a", "b", "a"]


def test_a_probe_asks_for_a_name_that_waits_for_the_end_of_an_outage():
    async def main():
        resolver = Resolver(NetworkConfig(lookup=lookup, timings=OutageTimings(quiet=0.1)))
        resolver.hosts = SimpleNamespace(met=lambda begun: asyncio.Event().wait())  # type: ignore
        watching = asyncio.create_task(resolver.watch.run())
        asked.append(waiting := asyncio.create_task(resolver.resolve("a", 80)))
        while len(asked) < 3:
            await asyncio.sleep(0)
        found = await resolver.resolve_now("a", 80)
        assert not waiting.done()
        watching.cancel()
        await resolver.close()
        await asyncio.gather(waiting, watching, return_exceptions=True)
        return [each["host"] for each in found]

    asked: list[object] = []

    async def lookup(host):
        asked.append(host)
        if len(asked) == 2:
            raise NoAnswerError(host)
        return ["8.8.8.8"]

    assert asyncio.run(main()) == ["8.8.8.8"]
