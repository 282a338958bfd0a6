# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_status``: do the queues move, who works on them, and if not, why not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DatabaseError, InterfaceError, router

from carrot_twisted import outcomes, status
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from django.core.management.base import CommandParser

    from carrot_twisted.status import Status, WorkerStatus

# Exit statuses, as those of `carrot_daemon status` where they mean the same.
EXIT_PROBLEMS = 1
EXIT_UNKNOWN = 4
#: Characters of a database's error that are shown.
MAX_ERROR = 300


class Command(BaseCommand):
    """The state of all queues and workers, from the tables."""

    help = (
        "Tells how the queues and their workers fare. Exit status 0: all is well; "
        f"{EXIT_PROBLEMS}: something is wrong, the text says what; {EXIT_UNKNOWN}: the database "
        "does not answer, or the settings are wrong, so nothing is known."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the option for programs."""
        parser.add_argument("--json", action="store_true", help="Print everything as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the state; the exit status sums it up."""
        try:
            found = status.read(router.db_for_read(MessageLog))
        except (DatabaseError, InterfaceError) as error:
            text = outcomes.exception_text(error, MAX_ERROR)
            raise CommandError(
                f"The database does not answer, so nothing is known: {text}",
                returncode=EXIT_UNKNOWN,
            ) from error
        except CarrotConfigException as error:
            raise CommandError(
                f"The settings are wrong, so nothing is known:\n{error}", returncode=EXIT_UNKNOWN
            ) from error
        self.stdout.write(
            json.dumps(asdict(found), cls=DjangoJSONEncoder, indent=1)
            if options["json"]
            else "\n".join(_lines(found))
        )
        if found.problems:
            sys.exit(EXIT_PROBLEMS)


def _lines(found: Status) -> Iterable[str]:
    yield f"{len(found.problems) or 'No'} problem{'' if len(found.problems) == 1 else 's'}"
    yield from (f"  {text}" for text in found.problems)
    yield from (one.text for one in found.paused)
    yield ""
    yield from _table(
        ("queue", "waiting", "limited", "oldest", "running", "unsent", "oldest", "workers"),
        [
            (
                one.name,
                _number(one.waiting, one.waiting_is_exact),
                _number(one.limited, one.limited_is_exact),
                _duration(one.oldest),
                one.running,
                _number(one.unsent, one.unsent_is_exact),
                _duration(one.unsent_age),
                one.workers,
            )
            for one in found.queues
        ],
    )
    yield ""
    yield from _table(
        ("worker", "host", "pid", "heartbeat", "threads", "busy", "coroutines", "queues"),
        [
            (
                one.name,
                one.host,
                one.pid,
                _seen(one),
                one.threads,
                one.busy,
                one.coroutines,
                ", ".join(one.queues),
            )
            for one in found.workers
        ],
    )
    busy = [(one, thread) for one in found.workers if one.alive for thread in one.running]
    if busy:
        yield ""
        yield from _table(
            ("thread", "runs", "for", "id", ""),
            [
                (
                    thread["thread"],
                    thread["task"],
                    _duration(thread["seconds"]),
                    thread["uuid"],
                    "stuck" if thread["stuck"] else "",
                )
                for _, thread in busy
            ],
        )


def _seen(one: WorkerStatus) -> str:
    if not one.alive:
        return "died"
    return f"{one.heartbeat_age:.0f} s ago{', quiet' if one.quiet else ''}"


def _number(count: int, is_exact: bool) -> str:
    return str(count) if is_exact else f"{count}+"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterable[str]:
    texts = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for line in texts:
        yield "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
