"""A signal that ends a run may come at any moment."""

import array
import fcntl
import signal
import termios

from tests.world import forks
from tests.world.command import environment
from tests.world.jobs import until

#: Prints more than a pipe holds, so that it waits for its reader.
PRINTING = """
import sys
from cahlib.commands.cli import _stoppable
with _stoppable() as stop:
    print("." * 200_000, file=sys.stderr)
sys.exit(3 if stop.is_set() else 0)
"""


def test_ctrl_c_in_the_middle_of_a_print_is_answered():
    process = forks.start(["-c", PRINTING], env=environment())
    held = array.array("i", [0])

    def is_full():
        fcntl.ioctl(process.stdout, termios.FIONREAD, held)
        return held[0] == fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ)

    until(is_full)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 3 and "press Ctrl-C again to leave" in said, said[-2000:]
    assert "Traceback" not in said
