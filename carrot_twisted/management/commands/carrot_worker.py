# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_worker``: let workers take nothing more, take work again, or stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import router

from carrot_twisted import conf, housekeeping, records
from carrot_twisted.exceptions import CarrotError, UnknownWorker
from carrot_twisted.models import MessageLog

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

ACTIONS = {
    "quiet": (housekeeping.quiet_worker, "take nothing more, go on with what runs"),
    "resume": (housekeeping.unquiet_worker, "take tasks and messages again"),
    "stop": (housekeeping.stop_worker, "stop, as by SIGTERM"),
}


class Command(BaseCommand):
    """One action on one worker, or on all."""

    help = (
        "Tells services, wherever they run, to take nothing more, to work again, or to stop. They "
        "hear of it with their next heartbeat. manage.py carrot_status knows their names."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """An action, and for whom it is."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for name, (_, text) in ACTIONS.items():
            one = actions.add_parser(name, help=text)
            whom = one.add_mutually_exclusive_group(required=True)
            whom.add_argument("name", nargs="?", metavar="NAME", help="Of the worker.")
            whom.add_argument("--all", action="store_true", help="All that live just now.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Do it.

        Raises:
            CommandError: there is no such worker, or the settings are wrong.
        """
        act, text = ACTIONS[options["action"]]
        try:
            names = _living() if options["all"] else [options["name"]]
            for name in names:
                try:
                    act(name)
                except UnknownWorker:
                    if not options["all"]:
                        raise
                    # It has ended this moment.
                else:
                    self.stdout.write(f"Worker {name} is to {text}.")
        except CarrotError as error:
            raise CommandError(str(error)) from error
        if not names:
            self.stdout.write("No worker is running.")


def _living() -> list[str]:
    known = records.workers(conf.current().lease, router.db_for_write(MessageLog))
    return [one.name for one in known.order_by("name") if records.is_alive(one)]
