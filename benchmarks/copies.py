# SPDX-License-Identifier: Apache-2.0
"""Runs a command so many times at once: a worker that has one slot, where others have threads.

    python -m benchmarks.copies 4 python -m django db_worker

A signal to end goes on to each; the status is the worst one of theirs.
"""

from __future__ import annotations

import signal
import subprocess
import sys


def main() -> int:
    """Start them, pass signals on, wait for all."""
    count, *command = sys.argv[1:]
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    processes += [subprocess.Popen(command) for _ in range(int(count))]
    return max(abs(process.wait()) for process in processes)


if __name__ == "__main__":
    sys.exit(main())
