# SPDX-License-Identifier: Apache-2.0
"""The systems of tasks that are compared, and what each of them does not promise."""

from __future__ import annotations

from benchmarks import peers
from benchmarks.systems import System

#: What a task has with carrot-twisted and lacks elsewhere; the letters stand beside the numbers.
LACKS = {
    "a": "a message is acknowledged before the work: the task of a killed process is lost",
    "b": "publishing does not wait for the broker to confirm: what it loses is not known",
    "c": "a row is written when the task has ended: before that nothing tells that there is one",
    "d": "the task of a killed process stays as running, until code of the user's finds it",
    "e": "a row keeps no return value",
    "f": "messages are not persistent: a broker that starts anew has lost them",
    "g": "nothing is written to the database, and nothing is run",
    "h": "nothing is written to the database: a result is in Redis alone, when the task has ended",
    "i": "Redis writes to disk once a second: a power cut takes the tasks and results since then",
}

_CARROT = (
    *("{folder}/twistd", "--nodaemon", "--pidfile="),
    *("carrot", "--settings=benchmarks.site_carrot.settings", "--no-scheduler"),
)
_CELERY = ("{python}", "-m", "celery", "--app=benchmarks.site_celery.app", "worker")
_CELERY_TUNED = (
    *_CELERY,
    *("--concurrency={concurrency}", "--without-gossip", "--without-mingle"),
    "--without-heartbeat",
)
# Celery drops the lines of tasks unless it logs at INFO; the others are told by Django's LOGGING.
_CELERY_LOGGING = ("--loglevel=INFO",)
_DJANGO = ("{python}", "-m", "django")

_ALL = (
    System(
        key="carrot",
        label="carrot-twisted",
        site="benchmarks.site_carrot",
        service=_CARROT,
    ),
    System(
        key="carrot-workers",
        label="carrot-twisted, {workers} processes",
        site="benchmarks.site_carrot",
        service=(*_CARROT, "--workers={workers}"),
    ),
    System(
        key="celery-default",
        label="Celery, as it comes",
        site="benchmarks.site_celery",
        settings="defaults",
        service=_CELERY,
        logging=_CELERY_LOGGING,
        lacks="abc",
    ),
    System(
        key="celery",
        label="Celery, threads",
        site="benchmarks.site_celery",
        service=(*_CELERY_TUNED, "--pool=threads"),
        logging=_CELERY_LOGGING,
        lacks="c",
    ),
    System(
        key="celery-prefork",
        label="Celery, prefork",
        site="benchmarks.site_celery",
        service=(*_CELERY_TUNED, "--pool=prefork"),
        logging=_CELERY_LOGGING,
        lacks="c",
    ),
    System(
        key="dramatiq",
        label="Dramatiq",
        site="benchmarks.site_dramatiq",
        service=(
            *(*_DJANGO, "rundramatiq", "--verbosity=0", "--queues={queue}"),
            *("--processes=1", "--threads={concurrency}"),
        ),
        peer=peers.DRAMATIQ,
        lacks="e",
    ),
    System(
        key="procrastinate",
        label="procrastinate",
        site="benchmarks.site_procrastinate",
        service=(*(*_DJANGO, "procrastinate", "worker", "--concurrency={concurrency}"),),
        peer=peers.PROCRASTINATE,
        has_queue=False,
        lacks="de",
    ),
    System(
        key="django-tasks-db",
        label="django-tasks-db",
        site="benchmarks.site_tasks_db",
        # A worker runs one task at a time: as many workers as others have threads.
        service=(
            *("{python}", "-m", "benchmarks.copies", "{concurrency}"),
            *("db_worker", "--interval=0.1", "--no-startup-delay"),
        ),
        peer=peers.TASKS_DB,
        has_queue=False,
        # It leaves in the middle of a question to the database, which may fail then.
        killed=True,
        lacks="d",
    ),
    System(
        key="huey",
        label="huey (Redis)",
        site="benchmarks.site_huey",
        # Asked to stop by SIGTERM it would interrupt running tasks, if nobody said otherwise.
        service=(*_DJANGO, "run_huey", "--quiet", "--graceful-signal=TERM"),
        peer=peers.HUEY,
        on_redis=True,
        lacks="ahi",
    ),
    System(
        key="django-carrot",
        label="django-carrot",
        site="benchmarks.site_django_carrot",
        service=(
            *(*_DJANGO, "carrot", "--no-scheduler", "--loglevel=WARNING"),
            "--logfile=/dev/null",
        ),
        peer=peers.DJANGO_CARROT,
        # Its main thread runs the loops that its consumers' threads are still running.
        killed=True,
        lacks="bdf",
    ),
)
SYSTEMS = {system.key: system for system in _ALL}
#: Peers at their best that keep a row of each task; targets are stated against the best of them.
TUNED = tuple(
    key
    for key, system in SYSTEMS.items()
    if not key.startswith("carrot") and key != "celery-default" and not system.on_redis
)
