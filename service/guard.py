"""Ends what a launcher leaves behind, however it ended: kill -9 included.

Run as a script, by path, with the run folder as its argument and its standard input held open by the
launcher. When that closes, every process whose environment names the folder is killed, and the folder
is removed. After an orderly stop there is nothing left to kill.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

ROUNDS = 5  # a process may be starting another while it is killed


def processes_of(folder: str) -> list[int]:
    """Ids of the processes whose environment names the folder, but this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if folder.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
    return found


def main() -> None:
    """Wait for the launcher's end, then clean up."""
    folder = sys.argv[1]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    sys.stdin.buffer.read()
    for _ in range(ROUNDS):
        left = processes_of(folder)
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            break
        time.sleep(0.2)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
