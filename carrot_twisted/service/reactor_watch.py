# SPDX-License-Identifier: Apache-2.0
"""Tells when the reactor was silent: a task has held the interpreter's lock (GIL) all the time.

A task of C code that never gives the lock back, such as one ``re.match`` that backtracks for
minutes, stops everything in its process: heartbeats, the broker, other tasks. No Python code can
say so then. ``faulthandler`` has a thread in C that needs no lock: it writes where each thread is,
unless the reactor has put it off in time.
"""

from __future__ import annotations

import faulthandler
import os
import time
from contextlib import suppress
from typing import Any

from twisted.internet.task import LoopingCall
from txaio.tx import make_logger

from carrot_twisted.outage import Outage

_log = make_logger()

#: Seconds of silence that are reported.
SILENCE = 10.0
#: Seconds between signs of life.
INTERVAL = 5.0


class ReactorWatch:
    """Watches the reactor of this process.

    Args:
        path: the log file that the stacks go to; None: where standard output goes.
        reactor: Twisted's reactor.
    """

    def __init__(self, path: str | None, reactor: Any) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._last = 0.0
        self._unwritable = Outage(reactor.seconds)
        self._sign = LoopingCall(self._sign_of_life)
        self._sign.clock = reactor

    def start(self) -> None:
        """Watch from now on."""
        self._last = time.monotonic()
        self._sign.start(INTERVAL)

    def stop(self) -> None:
        """Watch no more."""
        if self._sign.running:
            self._sign.stop()
        faulthandler.cancel_dump_traceback_later()
        self._close()

    def _sign_of_life(self) -> None:
        now = time.monotonic()
        silent = now - self._last - INTERVAL
        self._last = now
        if silent > SILENCE:
            _log.error(
                "The reactor was silent for {seconds:.0f} s: a task has held the interpreter "
                "(or the whole process stood still), and nothing else could run. The stacks of "
                "all threads were written meanwhile, above",
                seconds=silent,
            )
        try:
            faulthandler.dump_traceback_later(INTERVAL + SILENCE, file=self._log_file())
        except (OSError, ValueError, RuntimeError) as error:
            # It starts a thread each time: a RuntimeError where there is none left.
            told = self._unwritable.failed(str(error))
            if told is not None:
                _log.warn("Stacks of a silent reactor could not be written: {error}", error=told)
        else:
            after = self._unwritable.over()
            if after:
                _log.info("Stacks of a silent reactor could be written{after}", after=after)

    def _log_file(self) -> int:
        """Descriptor of what is the log at this moment: twistd renames a file that is full."""
        if self._descriptor is not None and not self._is_current(self._descriptor):
            faulthandler.cancel_dump_traceback_later()
            self._close()
        if self._descriptor is None:
            if self._path is None:
                # Standard output itself, not what sys.stdout is by now.
                self._descriptor = os.dup(1)
            else:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                self._descriptor = os.open(self._path, flags, 0o644)
        return self._descriptor

    def _is_current(self, descriptor: int) -> bool:
        if self._path is None:
            return True
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        return False

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
