"""The user-data for a server's first boot: the files beside this one, in cloud-init's format.

It does not know who creates the server. Any process on a server can read its user-data: the only
secret in it is the host's own key, which root could read anyway.
"""

from __future__ import annotations

import json
from pathlib import Path

from cahlib.swarm.keys import SwarmKeys

HERE = Path(__file__).parent

#: The user that scrapes, and for logins.
USER = "crawl"
HOME = f"/home/{USER}"

#: The user that runs the scheduler.
SCHEDULER_USER = "crawl-head"

#: Exists once the first boot has finished.
BOOT_MARKER = f"{HOME}/booted"

#: The folder of parcels, if `parcels.mount` is mounted.
PARCEL_FOLDER = "/var/lib/crawl/parcels"

#: The watchdog's instructions with its token: readable by root only, empty without a watchdog.
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
    """Return cloud-init's user-data for a node, at most 32 KiB.

    ``own`` is a private network that belongs to the swarm, as in tests.
    """
    host = keys.host(node)
    config = {
        "users": [
            {
                "name": USER,
                "shell": "/bin/bash",
                "lock_passwd": True,
                # adm reads the logs of cloud-init
                "groups": "adm,systemd-journal",
                "ssh_authorized_keys": [keys.ssh().public.read_text().strip()],
            },
            # scrapers beside the scheduler must not have its key
            {"name": SCHEDULER_USER, "system": True, "no_create_home": True, "lock_passwd": True},
        ],
        "manage_etc_hosts": "localhost",  # or sudo asks the name servers for our name
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
        # one transaction; Debian's own work at the first boot may hold dpkg's lock
        "apt": {"conf": 'DPkg::Lock::Timeout "300";\nAPT::Install-Recommends "false";\n'},
        "package_update": True,
        "packages": ["ca-certificates", "nftables", "python3-venv", "unbound"],
        "runcmd": [
            # Parcels are outside the user's home, in a folder of root's: there the user cannot
            # replace the mount point by a link.
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
    return "#cloud-config\n" + json.dumps(config, indent=1) + "\n"  # JSON is YAML


def _content(name: str, own: str) -> str:
    text = (HERE / name).read_text()
    return text.replace("@OWN@", f"elements = {{ {own} }}" if own else "")
