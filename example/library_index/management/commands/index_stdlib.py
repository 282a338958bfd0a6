# SPDX-License-Identifier: Apache-2.0
"""``manage.py index_stdlib``: publish a task for each source file, watch them, print a table."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message, publish_many
from library_index import report, source_tree
from library_index.progress import Progress
from library_index.tasks import index_file

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_WITHOUT_NEWS = 15

ADVICE = """\
Things to check:
  Is the service running? This starts it, in the folder example/:
      twistd -n carrot --settings=library.settings
  Is RabbitMQ running, where CARROT_BROKER_URL says? If not, the service says so.
  Does the service use the same database as this command (EXAMPLE_DATABASE)?
The tasks are not lost: they run as soon as all three are there."""


class Command(BaseCommand):
    """The parts, in the order of what happens: publish, wait, report."""

    help = "Indexes the source files of Python's standard library, one task for each file."
    requires_migrations_checks = True

    def add_arguments(self, parser: CommandParser) -> None:
        """Both are for trying things out."""
        parser.add_argument("--limit", type=int, metavar="N", help="index only the first N files")
        parser.add_argument(
            "--timeout",
            type=float,
            default=600,
            metavar="SECONDS",
            help="how long to wait until all tasks have ended (default: %(default)s)",
        )

    def handle(self, *args: Any, limit: int | None, timeout: float, **options: Any) -> None:
        """Exit status 0 if every task has ended: failing is an end too."""
        paths = source_tree.files()[:limit]
        if not paths:
            raise CommandError(f"There are no Python files in {source_tree.root()}.")
        self.stdout.write(f"Indexing {len(paths):,} files of {source_tree.root()}")

        messages = [create_message(index_file, task_args=[path]) for path in paths]
        published = [log.pk for log in publish_many(messages)]
        unfinished = self.wait(published, timeout)
        for line in report.lines(MessageLog.objects.in_bulk(published).values()):
            # Reasons quote the files, which hold characters that not every terminal knows.
            self.stdout.write(line.encode("ascii", "backslashreplace").decode())
        if unfinished:
            raise CommandError(
                f"After {timeout:g} seconds {unfinished:,} tasks had not ended. {ADVICE}"
            )

    def wait(self, published: Collection[UUID], timeout: float) -> int:
        """Watch the rows of the tasks; returns how many have not ended in time."""
        waiting = set(published)
        progress = Progress(len(waiting), sys.stderr)
        started = last_news = time.monotonic()
        while True:
            ended = MessageLog.objects.filter(status__in=MessageLog.FINAL).only("pk")
            news = ended.in_bulk(waiting)
            waiting.difference_update(news)
            progress.show(len(published) - len(waiting))
            now = time.monotonic()
            if not waiting or now - started > timeout:
                break
            if news:
                last_news = now
            elif now - last_news > SECONDS_WITHOUT_NEWS:
                progress.note(f"No task has ended for {SECONDS_WITHOUT_NEWS} seconds. {ADVICE}")
                last_news = now
            time.sleep(SECONDS_BETWEEN_LOOKS)
        progress.close()
        return len(waiting)
