# SPDX-License-Identifier: Apache-2.0
"""Steps that take a while: each says what it does, counts its seconds and tells the end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from devtools.process import tail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SECONDS_BETWEEN_SIGNS_OF_LIFE = 20  # where the output is a file


class StepFailed(Exception):
    """Something that must be done first has failed; the text shows why, or what to do."""


def say(text: str) -> None:
    """Print a line at once, also where the output is a pipe."""
    print(text, flush=True)  # noqa: T201 - the one place of these tools that talks to the terminal


@contextmanager
def step(title: str) -> Iterator[None]:
    """Announce a step, show that it is alive while it lasts, and tell how long it took."""
    say(f"==> {title} ...")
    started = time.monotonic()
    ended = threading.Event()
    ticker = threading.Thread(target=_tick, args=(started, ended), daemon=True)
    ticker.start()
    outcome = "failed"
    try:
        yield
        outcome = "done"
    finally:
        ended.set()
        ticker.join()
        say(f"    {outcome} after {time.monotonic() - started:.0f} s")


def run_quietly(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """Run a program with its output in a log file; if it fails, raise with the log's end."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        status = process.wait()
    except BaseException:
        process.terminate()  # it may take its time, or, as an installation does, refuse
        process.wait()
        raise
    if status:
        raise StepFailed(f"{command[0]} ended with status {status}. End of {log}:\n{tail(log)}")


def _tick(started: float, ended: threading.Event) -> None:
    """Count the seconds in place on a terminal; elsewhere print a line now and then."""
    in_place = sys.stdout.isatty()
    while not ended.wait(1 if in_place else SECONDS_BETWEEN_SIGNS_OF_LIFE):
        seconds = f"    {time.monotonic() - started:.0f} s"
        sys.stdout.write(f"\r{seconds}" if in_place else f"{seconds}\n")
        sys.stdout.flush()
    if in_place:
        sys.stdout.write("\r")
