# SPDX-License-Identifier: Apache-2.0
"""What is measured: each measure, of whom, with which task, and how much of it.

Standard library only: it is read before anything is installed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure."""

    label: str
    """In the table."""
    title: str
    """While it is taken."""
    systems: tuple[str, ...]
    task: str = "no_op"
    threads: int | None = None
    """Of each system, all of its processes together; None: of each process as many as the command
    line says."""
    share: float = 1.0
    """Of carrot-twisted's backlog: less, where a task takes longer."""
    peer_share: float = 1.0
    """Of the others' one."""
    rows: int = 1
    """How many tasks come of one that is published."""
    of_messages: bool = False
    """Of messages that others publish: no database has a part in it."""
    on_sqlite: bool = False
    """Whether it is taken on SQLite, too."""


PEERS = ("celery", "celery-prefork", "dramatiq", "procrastinate", "django-tasks-db", "huey")
CARROTS = ("carrot", "carrot-workers")
#: On SQLite nothing but the comparison with the nearest: who has much work takes PostgreSQL.
ON_SQLITE = (*CARROTS, "celery")
#: Whose backlog is still smaller, and by how much.
SLOW = {"celery-default": 0.25, "django-carrot": 0.5, "procrastinate": 0.5}

MEASURES = {
    "publish": Measure(
        label="publish one by one",
        title="publish {n:,} tasks one by one",
        # Those who differ in it: workers, threads and processes are the service's.
        systems=(
            *("carrot", "celery-default", "celery", "dramatiq", "procrastinate"),
            *("django-tasks-db", "django-carrot"),
        ),
        on_sqlite=True,
    ),
    "publish_many": Measure(
        label="publish_many",
        title="publish {n:,} tasks in one go",
        # The others have no such call.
        systems=("carrot", "procrastinate"),
        on_sqlite=True,
    ),
    "drain": Measure(
        label="drain",
        title="drain {n:,} tasks",
        systems=(*CARROTS, "celery-default", *PEERS, "django-carrot", "raw"),
        on_sqlite=True,
    ),
    "wait": Measure(
        label="wait 10 ms, 16 threads",
        title="drain {n:,} tasks that wait for 10 ms",
        systems=("carrot", *PEERS),
        task="wait",
        threads=16,
        share=0.4,
        peer_share=0.75,
    ),
    "wait_128": Measure(
        label="wait 10 ms, 128 threads",
        title="drain {n:,} tasks that wait for 10 ms",
        systems=CARROTS,
        task="wait",
        threads=128,
        share=1.5,
    ),
    "calculate": Measure(
        label="calculate 1 ms",
        title="drain {n:,} tasks that calculate for 1 ms",
        systems=(*CARROTS, *PEERS),
        task="calculate",
        share=0.2,
        peer_share=0.75,
    ),
    "lines": Measure(
        label="write 10 log lines",
        title="drain {n:,} tasks that write 10 log lines",
        systems=("carrot", *PEERS),
        task="ten_lines",
        share=0.4,
        peer_share=0.75,
    ),
    "another": Measure(
        label="publish another",
        title="drain {n:,} tasks that publish another one",
        systems=("carrot", *PEERS),
        task="publish_another",
        share=0.1,
        peer_share=0.4,
        rows=2,
    ),
    "consume": Measure(
        label="consume",
        title="call a callback with {n:,} messages",
        systems=("carrot", "fedora", "raw"),
        of_messages=True,
    ),
    "handle": Measure(
        label="handle",
        title="call a handler with {n:,} messages",
        systems=("carrot", "kombu", "kombu-tuned"),
        of_messages=True,
    ),
}
SYSTEMS = tuple(dict.fromkeys(name for measure in MEASURES.values() for name in measure.systems))
