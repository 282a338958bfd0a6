# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot``: what ``twistd -n carrot`` runs, for those who do not use twistd."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from twisted.python.usage import UsageError
from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

from carrot_twisted import service_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from django.core.management.base import CommandParser

#: Exit status of a command line that makes no sense, as argparse has it.
EXIT_USAGE = 2
#: Options that the service has by the same name.
PASSED_ON = (
    "loglevel",
    "log_format",
    "consumer_class",
    "concurrency",
    "shutdown_timeout",
    "max_tasks",
    "max_memory",
    "web",
    "workers",
    "http",
)


class Command(BaseCommand):
    """Options of the service, and the service in the foreground."""

    help = (
        "Runs the tasks that this project publishes, and publishes scheduled ones, until Ctrl-C "
        "or SIGTERM: then running tasks end first."
    )
    #: The service checks what it needs, and says so with an exit status of its own.
    requires_system_checks = ()
    logfile = "-"
    logfile_help = "File to log to; default: standard output."
    recycling = "stop, with exit status 75: whoever watches over it should start it anew."

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options of the service."""
        parser.add_argument("-l", "--logfile", default=self.logfile, help=self.logfile_help)
        parser.add_argument(
            "--loglevel",
            type=read_by(service_options.level),
            default="info",
            help="debug, info, warning, error or critical; default: info.",
        )
        parser.add_argument(
            "--log-format",
            type=read_by(service_options.log_format),
            default="text",
            help="text, or json: each event a line of JSON; default: text.",
        )
        parser.add_argument(
            "--no-scheduler",
            dest="run_scheduler",
            action="store_false",
            help="Publish no scheduled tasks; only consume.",
        )
        parser.add_argument(
            "--consumer-class",
            metavar="PATH",
            help="Dotted path of a Consumer, for all queues; default: each queue's own.",
        )
        parser.add_argument(
            "--queue",
            dest="queues",
            action="append",
            metavar="NAME",
            help="Consume from this queue only; may be given several times.",
        )
        parser.add_argument(
            "--concurrency",
            type=read_by(service_options.number),
            metavar="N",
            help="Tasks at once per queue; default: each queue's own.",
        )
        parser.add_argument(
            "--shutdown-timeout",
            type=read_by(service_options.seconds),
            metavar="SECONDS",
            help="Time for running tasks to end when the service stops; default: the setting.",
        )
        parser.add_argument(
            "--max-tasks",
            type=read_by(service_options.number),
            metavar="N",
            help=f"After so many tasks {self.recycling}",
        )
        parser.add_argument(
            "--max-memory",
            type=read_by(service_options.number),
            metavar="MB",
            help=f"With more memory than that in use {self.recycling}",
        )
        parser.add_argument(
            "--web",
            metavar="ENDPOINT",
            help="Serve pages, too, at this endpoint of Twisted's, such as "
            "tcp:8080:interface=127.0.0.1.",
        )
        parser.add_argument(
            "--http",
            metavar="ENDPOINT",
            help="Serve /live, /ready and /metrics at this endpoint of Twisted's, such as "
            "tcp:9090:interface=127.0.0.1.",
        )
        parser.add_argument(
            "--workers",
            type=read_by(service_options.number),
            metavar="N",
            help="Processes; all options are those of each of them. Default: 1.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the service in this process, until it is stopped."""
        runApp(self.configuration(options, "--nodaemon"))

    def configuration(self, options: Mapping[str, Any], *twistd: str) -> ServerOptions:
        """What twistd makes of these options.

        Args:
            options: those of ``add_arguments``.
            twistd: arguments of twistd itself.

        Raises:
            CommandError: the log file cannot be written, or an option makes no sense.
        """
        arguments = [*twistd, "--pidfile=", f"--logfile={options['logfile']}", "carrot"]
        arguments += service_arguments(options)
        if options["logfile"] != "-":
            _require_writable(options["logfile"])
        configuration = ServerOptions()
        try:
            # The settings module is in the environment: Django is using it.
            configuration.parseOptions(arguments)
        except UsageError as error:
            raise CommandError(str(error), returncode=EXIT_USAGE) from error
        configuration.subOptions.folder = None
        return configuration


def service_arguments(options: Mapping[str, Any]) -> list[str]:
    """The options of the service on a command line, as ``twistd carrot`` takes them, too."""
    arguments = [f"--queue={name}" for name in options["queues"] or ()]
    arguments += [
        f"--{name.replace('_', '-')}={options[name]}"
        for name in PASSED_ON
        if options[name] is not None
    ]
    if not options["run_scheduler"]:
        arguments.append("--no-scheduler")
    return arguments


def read_by(reader: Callable[[str], Any]) -> Callable[[str], Any]:
    """Let argparse tell what the reader says of a wrong value, too."""

    def read(text: str) -> Any:
        try:
            return reader(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    return read


def _require_writable(logfile: str) -> None:
    try:
        with open(logfile, "ab"):
            pass
    except OSError as error:
        raise CommandError(
            f"The log file {os.path.abspath(logfile)} cannot be written ({error.strerror}). "
            "Name another one with --logfile."
        ) from error
