"""A network of its own for a process of the tests, where no other one plugs, pulls or listens.

Chromium drops its connections (ERR_NETWORK_CHANGED) whenever an interface comes or goes, and the
light hosts come and go as network interfaces. The mount namespace keeps the names of their
networks (/run/netns) apart; with the process all of it goes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # <linux/sched.h>; os.unshare is Python 3.12
_SET_UP = (
    "mount --make-rprivate / && mkdir -p /run/netns && mount -t tmpfs none /run/netns && "
    "ip link set lo up"
)


def isolate() -> bool:
    """Move this thread, and all that it starts, to new namespaces with nothing but loopback.

    Return whether that was allowed; it needs root. Where it is not, there are no light hosts either
    (`tests.world.hosts.lacking`), so that interfaces neither come nor go.
    """
    assert threading.current_thread() is threading.main_thread(), "other threads would stay behind"
    if not shutil.which("unshare") or os.geteuid() != 0:
        return False
    tried = ["unshare", "--net", "--mount", "sh", "-c", _SET_UP]
    if subprocess.run(tried, capture_output=True).returncode != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["sh", "-c", _SET_UP], check=True)
    return True
