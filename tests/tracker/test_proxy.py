"""Behind real proxies, below a path of theirs, over TLS and HTTP/2: pages are whole."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import pytest

from cahlib.core.records import Stats
from cahlib.ledger.client import TrackerClient
from cahlib.tracker.app import create_app
from cahlib.tracker.request_limits import RequestLimits
from cahlib.tracker.service import TrackerSettings
from tests.world.jobs import until
from tests.world.ports import free_port
from tests.world.trackers import serving

ANY = RequestLimits(address=0, worker=0, newcomers=0)

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location /cah/ {{
      proxy_pass {inner}/;
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"""
CADDY = """
{{
  admin off
  auto_https off
}}
https://localhost:{port} {{
  tls {folder}/cert.pem {folder}/key.pem
  handle_path /cah/* {{
    reverse_proxy {address}
  }}
}}
"""


@pytest.fixture(params=["nginx", "caddy"])
def outside(request, url, database, fill, tmp_path, monkeypatch):
    """The tracker's address at a proxy."""
    for program in (request.param, "curl", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; type: apt-get install {program}")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem",
            "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    fill(1)
    with serving(create_app(TrackerSettings(database=url, limits=ANY, fresh=0, live=0.1))) as inner:
        with proxied(request.param, inner, tmp_path) as address:
            yield f"{address}/cah"


@pytest.fixture
def url(sqlite_url):
    return sqlite_url


@contextmanager
def proxied(program, inner, folder):
    port = free_port()
    words = {"folder": folder, "port": port, "inner": inner, "address": urlsplit(inner).netloc}
    if program == "nginx":
        (folder / "nginx.conf").write_text(NGINX.format(**words))
        command = ["nginx", "-c", folder / "nginx.conf", "-e", folder / "log"]
    else:
        (folder / "Caddyfile").write_text(CADDY.format(**words))
        command = ["caddy", "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"]
    with open(folder / "said", "wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        until(lambda: listens(port) or process.poll() is not None)
        assert process.poll() is None, (folder / "said").read_text()
        yield f"https://localhost:{port}"
    finally:
        process.terminate()
        process.wait()


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def fetched(url, tmp_path):
    """Status, protocol and text of a page, as curl gets it."""
    form = '{"status": %{http_code}, "protocol": "%{http_version}"}'
    line = ["curl", "-s", "--http2", "--cacert", tmp_path / "cert.pem", "-w", "\n" + form, url]
    ran = subprocess.run(line, capture_output=True, text=True, check=True)
    text, _, told = ran.stdout.rpartition("\n")
    return json.loads(told), text


def test_pages_are_whole_and_workers_work(outside, tmp_path):
    tracker = TrackerClient(outside)
    name = tracker.join("ann", "hybrid")["name"]
    [leased], _ = tracker.lease()
    tracker.complete(leased.number, similarities={}, stats=Stats())
    followed = set()
    for page in ("/", "/leaderboard", "/person?name=ann", f"/worker/hybrid/{name}"):
        told, text = fetched(outside + page, tmp_path)
        assert told == {"status": 200, "protocol": "2"}
        links = {
            urljoin(outside + page, link) for link in re.findall(r'(?:href|src)="(.*?)"', text)
        }
        assert f"{outside}/leaderboard" in links
        assert any(each.startswith(f"{outside}/site/style.css?") for each in links)
        followed |= links
    assert all(link.startswith(f"{outside}/") for link in followed)
    assert {fetched(link, tmp_path)[0]["status"] for link in followed} == {200}
    accepts = ["-N", "--cacert", tmp_path / "cert.pem", "-H", "Accept: text/event-stream"]
    watching = subprocess.Popen(["curl", "-s", *accepts, f"{outside}/live"], stdout=subprocess.PIPE)
    try:  # a proxy that kept it back until there is more would never end this
        assert any(line.startswith(b"data: ") for line in watching.stdout)
    finally:
        watching.kill()
        watching.communicate()
