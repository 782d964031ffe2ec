"""What a node is told at its first boot is understood by the programs that it is for."""

import datetime
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from cahlib.core.errors import ConfigError, RunError
from cahlib.core.secret_store import secret_path
from cahlib.engine import certificates as key_files
from cahlib.swarm import hetzner, install, lifecycle, server_image, wheel
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.node import HERE, user_data
from cahlib.swarm.planner import ServerLimits
from tests.world import cloud as clouds
from tests.world import hosts, wires


@pytest.fixture
def keys(tmp_path):
    return SwarmKeys(tmp_path / "keys")


def needs(program):
    path = shutil.which(program, path="/usr/bin:/usr/sbin:/usr/local/bin")
    return pytest.mark.skipif(path is None, reason=f"{program} is not installed (apt-get install).")


def test_keys_are_made_once_and_for_their_owner_only(keys):
    made = [keys.ssh(), keys.host("alpha"), keys.authority(), keys.node("node", "192.0.2.1")]
    before = [(p.private.read_bytes(), p.public.read_bytes()) for p in made]
    again = SwarmKeys(keys.folder)
    after = [again.ssh(), again.host("alpha"), again.authority(), again.node("node", "192.0.2.1")]
    assert [(p.private.read_bytes(), p.public.read_bytes()) for p in after] == before
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.folder.iterdir()} == {0o600}


def test_a_certificate_holds_for_its_nodes_addresses_and_the_drivers_for_none(keys):
    def read(pair):
        found = x509.load_pem_x509_certificate(pair.public.read_bytes()).extensions
        names = [each.value for each in found if each.oid == x509.SubjectAlternativeName.oid]
        use = found.get_extension_for_class(x509.ExtendedKeyUsage).value
        return [str(ip) for each in names for ip in each.get_values_for_type(x509.IPAddress)], use

    serves = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH
    alpha, beta = keys.node("alpha", "192.0.2.1"), keys.node("beta", "192.0.2.2")
    assert alpha.private.read_bytes() != beta.private.read_bytes()
    assert read(alpha)[0] == ["192.0.2.1"] and serves in read(alpha)[1]
    assert read(keys.node("alpha", "2001:db8::1"))[0] == ["2001:db8::1"]  # it has come back there
    assert read(keys.driver())[0] == [] and serves not in read(keys.driver())[1]


def days(number):
    return datetime.timedelta(days=number)


def test_certificates_that_end_soon_are_renewed_and_what_opens_the_nodes_stays(keys):
    signed = [keys.node("node", "192.0.2.1"), keys.driver(), keys.authority()]
    stay = [keys.ssh(), keys.host("alpha")]
    before = [p.public.read_bytes() for p in (*signed, *stay)]
    now = datetime.datetime.now(datetime.timezone.utc)
    keys.renew(now=now + days(14))
    assert [p.public.read_bytes() for p in (*signed, *stay)] == before
    keys.renew(now=now + days(16))
    after = [
        pair().public.read_bytes()
        for pair in (lambda: keys.node("node", "192.0.2.1"), lambda: keys.driver(), keys.authority)
    ]
    assert not set(after) & set(before)
    assert [p.public.read_bytes() for p in stay] == before[3:]
    *issued, authority = map(x509.load_pem_x509_certificate, after)
    for each in issued:
        each.verify_directly_issued_by(authority)


def test_certificates_are_renewed_before_servers_are_made(tmp_path, monkeypatch):
    """None is made here: the account has no room."""
    config = lifecycle.SwarmConfig(limits=ServerLimits(nodes=1), state=tmp_path / "run/swarm")
    keys = SwarmKeys(secret_path(config.state, "keys"))
    before = keys.authority().public.read_bytes()
    monkeypatch.setattr(key_files, "_MIN_REMAINING", days(31))  # so those of today end soon
    with clouds.serve(clouds.Cloud({"token": clouds.Account(limit=0)})) as cloud:
        accounts = hetzner.accounts("token", endpoint=cloud.url)
        with pytest.raises(RunError, match="no account accepted"):
            lifecycle.create_swarm(accounts, config, report=lambda _: None)
    assert keys.authority().public.read_bytes() != before


def test_user_data_fits_and_tells_no_secret_of_the_swarm(keys):
    keys.node("node", "192.0.2.1")
    text = user_data(keys, "alpha")
    assert len(text.encode()) < 32 * 1024
    told = json.loads(text.partition("\n")[2])
    assert told["ssh_keys"]["ed25519_private"] == keys.host("alpha").private.read_text()
    for secret in (keys.ssh(), keys.authority(), keys.node("node", "192.0.2.1")):
        assert secret.private.read_text().split("\n")[2] not in text


@needs("cloud-init")
def test_cloud_init_knows_the_user_data(keys, tmp_path):
    path = tmp_path / "user-data"
    path.write_text(user_data(keys, "alpha"))
    ran = subprocess.run(
        ["cloud-init", "schema", "--config-file", path], capture_output=True, text=True
    )
    assert ran.returncode == 0 and "Valid" in ran.stdout, ran.stdout + ran.stderr


@needs("unbound-checkconf")
def test_unbound_knows_its_settings():
    subprocess.run(["/usr/sbin/unbound-checkconf", HERE / "unbound.conf"], check=True)


@needs("sshd")
def test_sshd_knows_its_settings(keys, tmp_path):
    config = tmp_path / "sshd_config"
    config.write_text(f"HostKey {keys.host('alpha').private}\n{(HERE / 'sshd.conf').read_text()}")
    ran = subprocess.run(
        ["/usr/sbin/sshd", "-T", "-f", config], capture_output=True, text=True, check=True
    )
    assert "permitrootlogin no" in ran.stdout and "passwordauthentication no" in ran.stdout


def _unit(folder, name):
    """A unit of ours whose program there is here."""
    path = folder / name
    path.write_text(re.sub(r"(?m)^ExecStart=.*$", "ExecStart=/bin/true", (HERE / name).read_text()))
    return path


@needs("systemd-analyze")
@pytest.mark.parametrize("name", ["crawl.service", "crawl-head.service", "crawl-watchdog.service"])
def test_systemd_knows_the_units_and_finds_them_shut(tmp_path, name):
    unit = _unit(tmp_path, name)
    ran = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert str(unit) not in ran.stderr, ran.stderr
    line = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", unit]
    ran = subprocess.run(line, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


#: Listens on the ports that are given, in this network namespace, and says so.
_LISTEN = """
import socket, sys
held = [socket.create_server(("", int(port))) for port in sys.argv[1:]]
print("ready", flush=True)
sys.stdin.read()
"""

#: Says of each HOST:PORT whether somebody answers there.
_TRY = """
import socket, sys
for place in sys.argv[1:]:
    host, port = place.split(":")
    with socket.socket() as tried:
        tried.settimeout(20)
        print(place, tried.connect_ex((host, int(port))) == 0)
"""


@contextmanager
def _listening(space, *ports):
    line = ["ip", "netns", "exec", space, sys.executable, "-c", _LISTEN, *ports]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        yield
        process.stdin.close()


def _answers(space, *places):
    line = ["ip", "netns", "exec", space, sys.executable, "-c", _TRY, *places]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    return {place for place, yes in zip(said[::2], said[1::2], strict=True) if yes == "True"}


@needs("nft")
@pytest.mark.skipif(bool(hosts.lacking()), reason=hosts.lacking())
def test_a_node_reaches_the_web_alone_and_is_reached_at_its_own_ports(keys, tmp_path):
    rules = tmp_path / "nftables.conf"
    files = json.loads(user_data(keys, "alpha", own="198.18.7.0/24").partition("\n")[2])
    [text] = [
        each["content"] for each in files["write_files"] if each["path"] == "/etc/nftables.conf"
    ]
    rules.write_text(text)
    near = ["10.0.0.5", "192.168.3.4", "172.16.1.1", "100.64.0.9", "198.18.8.1"]
    with wires.Wires("4") as pair:
        for each in (*near, "198.18.7.1", "169.254.169.254"):
            wires.ip("-n", pair.far, "addr", "add", f"{each}/32", "dev", "br0")
        line = ["ip", "netns", "exec", pair.near]
        subprocess.run([*line, "nft", "-f", rules], check=True)
        web = {f"{wires.WEB}:{port}" for port in (80, 443)}
        own = {"198.18.7.1:8080", "169.254.169.254:80"}  # the latter for root
        shut = {f"{each}:80" for each in near} | {f"{wires.WEB}:22", f"{wires.WEB}:8080"}
        dask, node = {f"{wires.WEB}:8786"}, "93.184.216.2"
        closed, ssh = {f"{node}:{port}" for port in (8786, 9050)}, {f"{node}:22"}
        peers = tmp_path / "peers"
        peers.write_text((HERE / "peers").read_text().replace("/etc/cahlib", str(tmp_path)))
        with (
            _listening(pair.far, "80", "443", "8786", "8080", "22"),
            _listening(pair.near, "22", "8786", "9050", "80"),
        ):
            assert _answers(pair.near, *web, *own, *shut, *dask) == web | own
            assert _answers(pair.far, *ssh, *closed, f"{node}:80") == ssh
            for networks, opened in (
                ([f"{wires.WEB}/32", f"{wires.OTHER}/32"], True),
                (["192.0.2.1/32"], False),
                (["192.0.2.1/32", "0.0.0.0/0"], True),
                ([], False),
            ):
                subprocess.run([*line, "sh", peers, *networks], check=True)
                assert _answers(pair.near, *dask) == (dask if opened else set())
                assert _answers(pair.far, *ssh, *closed) == ssh | (closed if opened else set())
            assert subprocess.run([*line, "sh", peers, "10.0.0.0/8 }; flush"]).returncode == 1


def test_root_runs_nothing_that_the_user_of_the_crawl_could_change():
    units = [path for path in HERE.iterdir() if path.suffix in (".service", ".mount")]
    assert len(units) == 4
    for unit in units:
        text = unit.read_text()
        assert not re.search(r"(?m)^Exec\w+=[+!]|^PermissionsStartOnly", text)
        if unit.name == "crawl-watchdog.service":  # holds a token, which the crawl must not reach
            assert "\nDynamicUser=yes\n" in text and "/home/" not in text
            assert "ExecStart=/usr/bin/python3 -I /usr/local/" in text
        elif unit.suffix == ".service":
            assert re.search(r"\nUser=crawl(-head)?\n", text) and "\nNoNewPrivileges=yes\n" in text
        else:  # as root, in folders of root's
            assert "/home/" not in text


def test_the_wheel_is_the_same_for_the_same_code_and_holds_all(tmp_path):
    first, second = wheel.build_wheel(tmp_path / "1"), wheel.build_wheel(tmp_path / "2")
    assert first.name == second.name and first.read_bytes() == second.read_bytes()
    names = set(zipfile.ZipFile(first).namelist())
    assert {"cahlib/swarm/node/crawl.service", "cahlib/demo/scenes.tar"} <= names
    assert not any("__pycache__" in name for name in names)


def test_the_versions_of_what_scraping_needs_are_pinned():
    pins = dict(line.split("==") for line in wheel.pip_constraints().split())
    assert {"distributed", "dask", "aiohttp", "pillow"} <= pins.keys()
    assert "torch" not in pins


@pytest.mark.parametrize(
    "here,needs,wheels,expected",
    [
        ((3, 10), [">=3.10"], [], "debian-12"),
        ((3, 11), [">=3.10", ">=3.11"], [], "debian-12"),
        ((3, 11), [">=3.12"], [], "debian-13"),
        ((3, 12), [">=3.10,<3.13"], [], "debian-12"),
        ((3, 14), [">=3.10"], [], "debian-13"),
        ((3, 11), [], ["a-1-cp313-cp313-linux_x86_64.whl", "b-1-cp310-abi3-any.whl"], "debian-13"),
    ],
)
def test_nodes_have_a_python_that_runs_what_is_pinned(here, needs, wheels, expected):
    assert server_image.choose_image(needs, [Path(each) for each in wheels], here=here) == expected


@pytest.mark.parametrize(
    "needs,wheels,said",
    [([">=3.14"], [], "3.11, 3.13"), ([], ["a-1-cp312-cp312-any.whl"], "for Python 3.12, .*3.13")],
)
def test_no_image_will_do(needs, wheels, said):
    with pytest.raises(ConfigError, match=said):
        server_image.choose_image(needs, [Path(each) for each in wheels])


def test_an_empty_wheelhouse_is_named(tmp_path):
    with pytest.raises(ConfigError, match="contains no wheels"):
        install.make_package(tmp_path / "wheel", wheelhouse=tmp_path)


def test_ctrl_c_while_the_wheel_is_packed_is_nothing_but_that(tmp_path, monkeypatch):
    close, typed = zipfile._ZipWriteFile.close, []

    def interrupted(file):
        if not typed:
            typed.append(os.kill(os.getpid(), signal.SIGUSR1))
        close(file)

    monkeypatch.setattr(zipfile._ZipWriteFile, "close", interrupted)
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            wheel.build_wheel(tmp_path)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_watchdogs_token_has_a_file_of_roots_and_the_standard_library_alone(keys):
    told = json.loads(user_data(keys, "alpha").partition("\n")[2])
    files = {each["path"]: each for each in told["write_files"]}
    assert files["/etc/cahlib/watchdog.json"]["permissions"] == "0600"
    code = files["/usr/local/lib/cahlib/watchdog.py"]["content"]
    names = {
        line.split()[1].split(".")[0] for line in code.splitlines() if re.match("from|import", line)
    }
    assert names <= sys.stdlib_module_names | {"__future__"} and "cahlib" not in names


@needs("visudo")
def test_sudo_knows_its_rules():
    subprocess.run(["/usr/sbin/visudo", "-cf", HERE / "sudoers"], check=True, capture_output=True)
