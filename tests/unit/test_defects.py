# SPDX-License-Identifier: Apache-2.0
"""django-carrot 1.5.0 has 44 known defects. A test marked ``defect(n)`` shows that n is not ours.

``pytest -m defect`` runs them. This file sees to it that none is forgotten.
"""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
#: One line per defect: what django-carrot does.
DEFECTS = {
    1: "publishing before the queue exists loses the message",
    2: "messages are transient, exchanges not durable",
    3: "a crash in the middle of a task loses it",
    4: "an unknown message stalls the consumer for 5 seconds and is lost",
    5: "a message goes out before its transaction commits",
    6: "bad arguments leave a row that waits for ever",
    7: "requeue_all() runs tasks twice",
    8: "a deleted row comes back when its task ends",
    9: "two consumers can both take a row",
    10: "a broker that is away for 5 seconds ends the consumer",
    11: "a killed database session ends the consumer",
    12: "SystemExit in a task, or a message without headers, ends the consumer",
    13: "a locked database turns a success into a failure",
    14: "every reconnection nests deeper, until RecursionError",
    15: "no heartbeats while a task runs",
    16: "stopping races with the connection's thread",
    17: "timers of schedules start anew with the process",
    18: "two services publish every schedule twice",
    19: "schedules drift, and cost a thread and a query a second each",
    20: "an interval of 0, or in weeks, floods the queue",
    21: "an error ends a schedule's thread for ever",
    22: "names of schedules are not unique in the database",
    23: "arguments of schedules arrive as raw texts",
    24: "removing a schedule adds an empty one",
    25: "arguments with a comma cannot be requeued",
    26: "keyword arguments that are no object are accepted",
    27: "a result that is no JSON fails the task",
    28: "whoever can publish a message can run any function",
    29: "the broker's password is shown and logged",
    30: "GET requests of the monitor change things",
    31: "the monitor loads fonts from elsewhere",
    32: "the monitor works at one address only",
    33: "the monitor's bulk actions ignore the search",
    34: "no index: looking up a row scans the table",
    35: "the monitor loses lines of logs and breaks on a missing traceback",
    36: "one task's log lines show up in another's",
    37: "the command exits with 0 on errors, hangs, needs root",
    38: "the daemon command trips over stale pid files and hangs in stop",
    39: "(a strength to keep) SIGTERM drains",
    40: "publishing blocks for 18 seconds when the broker is away",
    41: "a connection for each consumer, another for each message",
    42: "it cannot be installed",
    43: "its own tests meet no broker and no database",
    44: "what every modern queue has is missing",
}
#: Those that no test of today can show, and why.
CANNOT_ARISE = {
    30: "there is no monitor yet",
    31: "there is no monitor yet",
    32: "there is no monitor yet",
    33: "there is no monitor yet",
    35: "there is no monitor yet; what it shows is stored as lines with one clock",
    43: "every other number of this list is shown by a test against real servers or the database",
    44: "a list of features: a result, a log, retention, schedules and on_commit are there",
}


def marked() -> set[int]:
    """All numbers in ``@pytest.mark.defect(...)`` of tests, also on classes."""
    found: set[int] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for decorator in node.decorator_list:
                    if ast.unparse(decorator).startswith("pytest.mark.defect("):
                        assert isinstance(decorator, ast.Call)
                        found |= {ast.literal_eval(number) for number in decorator.args}
    return found


def test_every_defect_is_shown_not_to_be_ours_or_said_why_it_cannot_be() -> None:
    shown = marked()
    assert shown <= set(DEFECTS), "a number that stands for nothing"
    assert not shown & set(CANNOT_ARISE), "a test shows it after all"
    missing = set(DEFECTS) - shown - set(CANNOT_ARISE)
    assert not missing, {number: DEFECTS[number] for number in missing}
