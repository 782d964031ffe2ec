"""What a server is told at its first boot: the files beside this one, made into cloud-init's form.

It does not know who makes the server. Any process on a server can read its user-data: of secrets
it holds the host's own key, which root could read anyway, and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

from cahlib.engine.certificates import SwarmKeys

HERE = Path(__file__).parent

#: The user that scrapes and that we log in as.
USER = "crawl"
HOME = f"/home/{USER}"

#: The user that the scheduler runs as.
SCHEDULER_USER = "crawl-head"

#: Is there once the first boot has ended.
BOOT_MARKER = f"{HOME}/booted"

#: Where parcels lie, if `parcels.mount` could be.
PARCEL_FOLDER = "/var/lib/crawl/parcels"

#: What the head's watchdog is told, token and all: root's alone, empty until a driver wants one.
WATCHDOG_FILE = "/etc/cahlib/watchdog.json"

#: Where each file goes on a node, and its mode.
_FILES = {
    "crawl.service": ("/etc/systemd/system/crawl.service", "0644"),
    "crawl-head.service": ("/etc/systemd/system/crawl-head.service", "0644"),
    "crawl-watchdog.service": ("/etc/systemd/system/crawl-watchdog.service", "0644"),
    "watchdog.py": ("/usr/local/lib/cahlib/watchdog.py", "0644"),
    "nftables.conf": ("/etc/nftables.conf", "0644"),
    "parcels.mount": ("/etc/systemd/system/var-lib-crawl-parcels.mount", "0644"),
    "dask.yaml": ("/etc/cahlib/dask.yaml", "0644"),
    "resolver": ("/usr/local/sbin/crawl-resolver", "0755"),
    "peers": ("/usr/local/sbin/crawl-peers", "0755"),
    "scheduler": ("/usr/local/sbin/crawl-scheduler", "0755"),
    "sshd.conf": ("/etc/ssh/sshd_config.d/00-cahlib.conf", "0644"),
    "sudoers": ("/etc/sudoers.d/cahlib", "0440"),
    "unbound.conf": ("/etc/unbound/unbound.conf.d/cahlib.conf", "0644"),
}


def user_data(keys: SwarmKeys, node: str, *, own: str = "") -> str:
    """cloud-init's user-data for a node, at most 32 KiB.

    ``own`` is a network that is not public and yet the swarm's, as in tests.
    """
    host = keys.host(node)
    told = {
        "users": [
            {
                "name": USER,
                "shell": "/bin/bash",
                "lock_passwd": True,
                # adm reads the logs of cloud-init
                "groups": "adm,systemd-journal",
                "ssh_authorized_keys": [keys.ssh().public.read_text().strip()],
            },
            # whoever scrapes beside the scheduler is not to have its key
            {"name": SCHEDULER_USER, "system": True, "no_create_home": True, "lock_passwd": True},
        ],
        "manage_etc_hosts": "localhost",  # or sudo asks the name servers who we are
        "disable_root": True,
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        "ssh_genkeytypes": ["ed25519"],
        "ssh_keys": {
            "ed25519_private": host.private.read_text(),
            "ed25519_public": host.public.read_text().strip(),
        },
        "write_files": [
            {"path": WATCHDOG_FILE, "permissions": "0600", "content": ""},
            *(
                {"path": path, "permissions": mode, "content": _content(name, own)}
                for name, (path, mode) in _FILES.items()
            ),
        ],
        # one transaction; Debian's own first-boot work may hold dpkg's lock meanwhile
        "apt": {"conf": 'DPkg::Lock::Timeout "300";\nAPT::Install-Recommends "false";\n'},
        "package_update": True,
        "packages": ["ca-certificates", "nftables", "python3-venv", "unbound"],
        "runcmd": [
            # Parcels lie beside the user's home, in a folder that is root's: there the user cannot
            # put a link to elsewhere in the place of what root mounts.
            "install -d -m 755 /var/lib/crawl",
            "systemctl daemon-reload",
            "systemctl enable --now var-lib-crawl-parcels.mount",
            f"install -d -m 700 -o {USER} -g {USER} {PARCEL_FOLDER}",
            "systemctl try-reload-or-restart ssh",
            "/usr/local/sbin/crawl-resolver",
            "systemctl enable nftables",
            "systemctl restart nftables",
            f"touch {BOOT_MARKER}",
        ],
    }
    return "#cloud-config\n" + json.dumps(told, indent=1) + "\n"  # JSON is YAML


def _content(name: str, own: str) -> str:
    text = (HERE / name).read_text()
    return text.replace("@OWN@", f"elements = {{ {own} }}" if own else "")
