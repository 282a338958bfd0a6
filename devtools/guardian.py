# SPDX-License-Identifier: Apache-2.0
"""Runs one server and makes sure that it outlives nobody. A script, started by `process.py`.

Standard input is the lifeline, a pipe whose other end only the starter holds. However the
starter ends, by itself or by kill -9, the pipe closes and the server is ended. This works from
any thread and on any Unix. PR_SET_PDEATHSIG in the starter would not: it fires when the *thread*
that started the server ends, and only Linux has it. Here, where there is one thread that lives
as long as the process, it serves as a second net: for a guardian that is itself killed.

A server is a family of processes. On Linux the guardian adopts those whose parent died, and
kills what is left when the server itself has ended. So once the guardian is gone, all are gone.

    guardian.py <user or ""> <name of the signal that ends the server> <command> [argument ...]

The first line on standard output is the process id of the server; the server writes to the
guardian's standard error.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SECONDS_TO_END = 10.0


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process; a Unix that has no prctl goes without."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_when_abandoned(pid: int, end_signal: signal.Signals) -> None:
    """Wait for the end of the lifeline; then end the server, in the end by force."""
    while os.read(0, 1):
        pass
    with suppress(ProcessLookupError):
        os.kill(pid, end_signal)
        os.kill(pid, signal.SIGCONT)  # a paused server would not see the signal
        time.sleep(SECONDS_TO_END)
        os.kill(pid, signal.SIGKILL)


def kill_children() -> None:
    """Kill all processes whose parent is this one (Linux; elsewhere none is adopted)."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with suppress(FileNotFoundError):
        for pid in children.read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def reap(server_pid: int) -> int:
    """Wait until the server and all that it left behind have ended; return its exit status."""
    status = 0
    with suppress(ChildProcessError):
        while True:
            pid, wait_status = os.wait()
            if pid == server_pid:
                status = os.waitstatus_to_exitcode(wait_status)
                server_pid = 0
            if not server_pid:
                kill_children()
    return status


def main(user: str, end_signal_name: str, *command: str) -> int:
    """Run the command; return its exit status (or 128 + signal, as a shell does)."""
    end_signal = signal.Signals[end_signal_name]
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, lambda *_: None)  # SIG_IGN would be inherited by the server
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    account = pwd.getpwnam(user) if user else None
    # preexec_fn is safe here: no other thread runs yet.
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, end_signal),
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )
    print(server.pid, flush=True)
    watcher = threading.Thread(target=end_when_abandoned, args=(server.pid, end_signal))
    watcher.daemon = True
    watcher.start()
    status = reap(server.pid)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
