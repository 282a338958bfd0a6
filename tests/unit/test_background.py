# SPDX-License-Identifier: Apache-2.0
"""The reactor of a program that has none: started once, and never waited for in vain."""

from __future__ import annotations

import subprocess
import sys

from tests.processes import REPOSITORY

STARTS = """
import threading
from twisted.internet.threads import blockingCallFromThread
from carrot_twisted.service.background import running_reactor
reactor = running_reactor()
assert running_reactor() is reactor
names = [t.name for t in threading.enumerate() if t.name == "carrot-reactor"]
where = blockingCallFromThread(reactor, lambda: threading.current_thread().name)
print(names, where)
"""

RAN_BEFORE = """
from twisted.internet import reactor
reactor.callWhenRunning(reactor.stop)
reactor.run()
from carrot_twisted.service.background import running_reactor
try:
    running_reactor()
except RuntimeError as error:
    print(error)
"""


def output_of(program: str) -> str:
    """What a program of its own prints: a reactor cannot be stopped and started again."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_runs_in_a_thread_of_its_own_once() -> None:
    assert output_of(STARTS) == "['carrot-reactor'] carrot-reactor"


def test_a_reactor_that_has_run_before_is_an_error_and_no_endless_wait() -> None:
    text = output_of(RAN_BEFORE)
    assert text.startswith("Twisted's reactor does not start in this process: ReactorNotRestart")
    assert "use another process" in text
