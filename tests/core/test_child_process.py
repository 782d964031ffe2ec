"""A Python that a command starts imports what the command does, and hears no terminal."""

import signal
import subprocess

from cahlib.core.child_process import python_command, unsignalled

TOLD = """
import queue, signal
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
print(*sys.argv[1:], queue.__name__, *map(int, sorted(blocked)))
"""


def test_files_of_the_working_folder_are_not_imported(tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('of the working folder')")
    line = python_command(TOLD, "given")
    with unsignalled():
        ran = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout.split() == ["given", "queue", "1", "2"]  # SIGHUP, SIGINT
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
