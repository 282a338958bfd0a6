# SPDX-License-Identifier: Apache-2.0
"""The options of ``twistd carrot``, and how their values are read."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from twisted.python import usage

from carrot_twisted.callback_options import CallbackOptions
from carrot_twisted.limits import MAX_SECONDS
from carrot_twisted.service import following, json_log

if TYPE_CHECKING:
    from collections.abc import Sequence


def number(text: str) -> int:
    """Read a whole number above 0.

    Raises:
        ValueError: it is none.
    """
    value = int(text)
    if value < 1:
        raise ValueError("must be 1 or more")
    return value


def seconds(text: str) -> float:
    """Read a number of seconds above 0.

    Raises:
        ValueError: it is none, or more than a hundred years.
    """
    value = float(text)
    if not 0 < value <= MAX_SECONDS:
        raise ValueError("must be more than 0, and less than a hundred years")
    return value


def level(text: str) -> str:
    """Read a log level, in capital letters or small ones, and give it txaio's name.

    Raises:
        ValueError: it is none.
    """
    name = text.lower()
    name = {"warning": "warn"}.get(name, name)
    if name not in ("debug", "info", "warn", "error", "critical"):
        raise ValueError("must be one of debug, info, warning, error, critical")
    return name


def log_format(text: str) -> str:
    """Read the form of the log.

    Raises:
        ValueError: there is no such form.
    """
    if text not in ("text", "json"):
        raise ValueError("must be text or json")
    return text


class Options(CallbackOptions):
    """Options of ``twistd carrot``."""

    synopsis = "[twistd options] carrot --settings=proj.settings [options]"
    longdesc = (
        "Runs the tasks that a Django project publishes to RabbitMQ. Start it in the folder of "
        "manage.py. With twistd's -n it stays in the foreground and logs to standard output."
    )
    optParameters: tuple[list[Any], ...] = (
        ["settings", "s", None, "Settings module of the project; default: DJANGO_SETTINGS_MODULE."],
        ["concurrency", "c", None, "Tasks at once per queue, instead of the settings'.", number],
        ["shutdown-timeout", None, None, "Seconds for running tasks to end.", seconds],
        ["loglevel", "l", "info", "debug, info, warning, error or critical.", level],
        ["log-format", None, "text", "text, or json: each event a line of JSON.", log_format],
        ["consumer-class", None, None, "Dotted path, for all queues, instead of the settings'."],
        ["max-tasks", None, None, "End with status 75 after so many tasks.", number],
        ["max-memory", None, None, "End with status 75 above so many MB of memory.", number],
        ["web", None, None, "Serve pages, too: tcp:8080:interface=127.0.0.1, for example."],
        ["workers", "w", 1, "Processes; all options are those of each of them.", number],
        ["http", None, None, "Serve health and metrics: tcp:9090:interface=127.0.0.1, for one."],
    )
    optFlags = (["no-scheduler", None, "Publish no scheduled tasks; only consume."],)

    def __init__(self) -> None:
        super().__init__()
        #: Put on the import path; None where ``manage.py`` has set it up already.
        self.folder: str | None = os.getcwd()
        self["queues"] = []
        #: twistd's pid file, which the service takes care of; "": none, or not ours.
        self.pid_path = ""
        #: Arguments of ``consume``; None: it runs tasks.
        self.consume: dict[str, Any] | None = None
        #: The command line, for further processes.
        self.arguments: tuple[str, ...] = ()

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read the command line, and keep it."""
        self.arguments = tuple(sys.argv[1:] if options is None else options)
        super().parseOptions(options)

    def opt_queue(self, name: str) -> None:
        """Consume from this queue only; may be given several times."""
        self["queues"].append(name)

    opt_q = opt_queue

    def postOptions(self) -> None:
        """Take the settings module from the environment if it was not given."""
        twistd = self.parent
        if twistd is not None and twistd.get("pidfile") and not twistd.get("chroot"):
            self.pid_path, twistd["pidfile"] = twistd["pidfile"], ""
        self["settings"] = self["settings"] or os.environ.get("DJANGO_SETTINGS_MODULE")
        if self["log-format"] == "json" and twistd is not None:
            _log_as_json(twistd)
        self.consume = self.consume_arguments()
        if not self["settings"] and self.consume is None:
            raise usage.UsageError(
                "Say which Django project to run: twistd carrot --settings=proj.settings"
            )


def _log_as_json(twistd: Any) -> None:
    """Give twistd our log instead of its own. It finds it by name, once it has read all options."""
    if twistd.get("syslog") or twistd.get("logger") not in (None, following.PLAIN_LOG):
        raise usage.UsageError(
            "--log-format=json goes to a file or standard output, not together with twistd's "
            "--syslog or --logger"
        )
    twistd["logger"] = f"{json_log.__name__}.{json_log.observer.__name__}"
