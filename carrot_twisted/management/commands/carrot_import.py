# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_import``: schedules and unfinished logs from a django-carrot database."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections, router
from django.utils import timezone

from carrot_twisted import moving, old_tables
from carrot_twisted.exceptions import CarrotError
from carrot_twisted.models import MessageLog

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from carrot_twisted.moving import LogReport


#: A hundred years, which every database can subtract.
MAX_DAYS = 36_500


def days(text: str) -> float:
    """A number of days on the command line."""
    value = float(text)
    if not 0 < value <= MAX_DAYS:
        raise ValueError(text)
    return value


class Command(BaseCommand):
    """Prints what it would do; with ``--apply``, does it and prints what it did."""

    help = (
        "Bring schedules and unfinished logs over from the tables of django-carrot. Without "
        "--apply it changes nothing and says what it would do. Run it when django-carrot's own "
        "service has stopped. It may be repeated: nothing comes over twice."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Options, see ``help``."""
        parser.add_argument("--apply", action="store_true", help="Write, not only tell.")
        parser.add_argument(
            "--from",
            dest="source",
            metavar="ALIAS",
            choices=tuple(connections),
            default=router.db_for_write(old_tables.OldMessageLog),
            help="Database with the tables of django-carrot (%(default)s).",
        )
        parser.add_argument(
            "--database",
            dest="target",
            metavar="ALIAS",
            choices=tuple(connections),
            default=router.db_for_write(MessageLog),
            help="Database with the tables of carrot_twisted (%(default)s).",
        )
        parser.add_argument(
            "--max-age",
            type=days,
            metavar="DAYS",
            default=moving.MAX_AGE,
            help="Leave unfinished logs that were published earlier (%(default)g days ago).",
        )
        parser.add_argument(
            "--in-progress",
            action="store_true",
            help="Also run again what was running when the old service ended.",
        )
        parser.add_argument(
            "--history", action="store_true", help="Also bring completed and failed logs."
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Do it.

        Raises:
            CommandError: the old tables are not there, or the settings are wrong.
        """
        move = moving.Move(
            source=options["source"], target=options["target"], apply=options["apply"]
        )
        statuses = [MessageLog.PUBLISHED]
        if options["in_progress"]:
            statuses.append(MessageLog.IN_PROGRESS)
        if options["history"]:
            statuses += [MessageLog.COMPLETED, MessageLog.FAILED]
        try:
            old_tables.require(move.source)
            age = timedelta(days=options["max_age"])
            self._schedules(move)
            self._logs(moving.import_logs(move, statuses, timezone.now() - age), age)
        except CarrotError as error:
            raise CommandError(str(error)) from error
        if not move.apply:
            self.stdout.write("\nNothing was changed. To do this, add --apply.")

    def _schedules(self, move: moving.Move) -> None:
        self.stdout.write("Schedules")
        for line in moving.import_schedules(move):
            self.stdout.write(f"  {line.verdict:<9}  {line.name}")
            if line.text:
                self.stdout.write(f"  {'':<9}    {line.text}")

    def _logs(self, report: LogReport, age: timedelta) -> None:
        self.stdout.write("\nLogs               new      here   refused      left")
        for status in sorted({status for status, _ in report.counts}):
            numbers = [report.counts[status, kind] for kind in ("new", "here", "refused", "left")]
            text = f"  {status:<11}" + "".join(f"{number:>10}" for number in numbers)
            if status in report.times:
                text += "   published {:%Y-%m-%d %H:%M} to {:%Y-%m-%d %H:%M}".format(
                    *report.times[status]
                )
            self.stdout.write(text)
        for line in report.refused:
            self.stdout.write(f"  refused: {line}")
        self.stdout.write(
            f"  left: came over before (MOVED), or older than {age / timedelta(days=1):g} days "
            "(--max-age), in progress (--in-progress), finished (--history)"
        )
