# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_queue``: pause queues, resume them, tell which ones are paused."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import router

from carrot_twisted import housekeeping
from carrot_twisted.exceptions import CarrotError
from carrot_twisted.models import MessageLog, PausedQueue

if TYPE_CHECKING:
    from django.core.management.base import CommandParser


class Command(BaseCommand):
    """One action on one queue, or the list."""

    help = (
        "Pauses a queue: no service takes messages off it, in any process, also after a restart, "
        "until it is resumed. Publishing goes on, and what runs comes to its end."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """An action, and what it is for."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        pause = actions.add_parser("pause", help="take nothing off the queue any more")
        pause.add_argument("--reason", default="", metavar="TEXT", help="For people.")
        pause.add_argument(
            "--by", default=_user(), metavar="NAME", help="Who wants it, for people (%(default)s)."
        )
        resume = actions.add_parser("resume", help="take messages off the queue again")
        for one in (pause, resume):
            one.add_argument("name", metavar="NAME", help="Queue of tasks, or of a handler.")
        actions.add_parser("list", help="tell which queues are paused")

    def handle(self, *_: Any, **options: Any) -> None:
        """Do it.

        Raises:
            CommandError: there is no such queue, or the settings are wrong.
        """
        name = options.get("name", "")
        try:
            if options["action"] == "pause":
                housekeeping.pause_queue(name, by=options["by"], reason=options["reason"])
            elif options["action"] == "resume" and not housekeeping.resume_queue(name):
                self.stdout.write(f"Queue {name} was not paused.")
        except CarrotError as error:
            raise CommandError(str(error)) from error
        paused = PausedQueue.objects.using(router.db_for_write(MessageLog)).order_by("name")
        for one in paused:
            self.stdout.write(f"{one}.")
        if not paused:
            self.stdout.write("No queue is paused.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container, a number without a name.
        return ""
