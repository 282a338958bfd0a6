# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_send``: publish a task from a shell or a crontab."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from carrot_twisted import publisher
from carrot_twisted.exceptions import CarrotError
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message

if TYPE_CHECKING:
    from django.core.management.base import CommandParser

#: Seconds to wait for the broker's confirm.
PATIENCE = 5.0


class Command(BaseCommand):
    """Publish one task, as ``publish_message`` does."""

    help = (
        "Publishes a task and prints the id of its message. Arguments are texts; with --json they "
        "are whatever their JSON says. Put -- before arguments that begin with a dash."
    )

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Let options stand anywhere, also between the task and its arguments."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.parse_args = parser.parse_intermixed_args  # type: ignore[method-assign]
        return parser

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the task, its arguments, and where they go."""
        parser.add_argument("job_name", help="Dotted path of the task, such as myapp.tasks.greet.")
        parser.add_argument("job_args", nargs="*", default=[], help="Its positional arguments.")
        parser.add_argument(
            "--kwarg",
            dest="job_kwargs",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help="A keyword argument; may be given several times.",
        )
        parser.add_argument(
            "--json", action="store_true", help="Read each argument and each VALUE as JSON."
        )
        parser.add_argument(
            "--queue", metavar="NAME", help="Queue; default: the task's own, or default."
        )
        parser.add_argument(
            "--priority", type=int, metavar="N", help="0 to 255; default: the task's own, or 0."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Publish, and wait a little for the broker to confirm."""
        read = _json if options["json"] else str
        keywords = [_split(text) for text in options["job_kwargs"]]
        try:
            log = create_message(
                options["job_name"],
                queue=options["queue"],
                priority=options["priority"],
                task_args=[read(text) for text in options["job_args"]],
                task_kwargs={name: read(value) for name, value in keywords},
            ).publish()
        except (ImportError, AttributeError) as error:
            raise CommandError(
                f"{error}. Give the dotted path of a function, such as myapp.tasks.greet."
            ) from error
        except CarrotError as error:
            raise CommandError(str(error)) from error
        except DatabaseError as error:
            raise CommandError(
                f"No row was written: {error}. Is the database there, and has it the tables of "
                "carrot_twisted (manage.py migrate)?"
            ) from error
        publisher.flush(PATIENCE)
        self.stdout.write(str(log.pk))
        # The row may be gone again: its task has run, and a failure callback has deleted it.
        if MessageLog.objects.unsent().filter(pk=log.pk).exists():
            self.stderr.write(
                "The broker has not confirmed it. It is kept in the database, and a running "
                "service will send it."
            )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise CommandError(f"--kwarg {text!r} is not of the form name=value.")
    return name, value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(
            f"{text!r:.200} is no JSON ({error}). With --json a text needs quotation marks of its "
            f"own: '{json.dumps(text):.200}'"
        ) from error
