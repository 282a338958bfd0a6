# SPDX-License-Identifier: Apache-2.0
"""The command ``carrot``: consume, publish, record and replay messages. See docs/callbacks.md.

``manage.py`` and ``twistd carrot`` run tasks; this is for messages, and needs no Django project.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carrot_twisted import __version__, conf, messaging, recording
from carrot_twisted.exceptions import (
    CarrotConfigException,
    CarrotError,
    HaltConsumer,
    InvalidMessage,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from carrot_twisted.handlers import Message

EXIT_FAILED = 1
#: As argparse has it.
EXIT_USAGE = 2
#: Bytes of a recording that are read at once.
CHUNK = 65_536
#: Name of the file that stands for standard input.
STANDARD_INPUT = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["consume"]:
        return _consume(given[1:])
    options = _parser().parse_args(given)
    if options.settings:
        os.environ["DJANGO_SETTINGS_MODULE"] = options.settings
    # A project's modules are where it is started, as with manage.py.
    sys.path.insert(0, os.getcwd())
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    try:
        _set_up()
        run: Callable[[argparse.Namespace], str] = options.run
        _tell(run(options))
    except (CarrotError, OSError, ImportError) as error:
        _tell(f"carrot {options.command}: {error}")
        return EXIT_FAILED
    return 0


def _set_up() -> None:
    from django.core.exceptions import ImproperlyConfigured

    try:
        conf.set_up()
    except ImproperlyConfigured as error:
        raise CarrotConfigException(f"Django does not start: {error}") from error


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="carrot",
        description="Messages on RabbitMQ. The broker is that of the environment's "
        f"{conf.BROKER_VARIABLE}, or of a Django project's settings.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Its options are those of twistd carrot, which reads them.
    commands.add_parser("consume", help="call a callback with messages", add_help=False)
    _add_publish(_command(commands, "publish", _publish, "publish a message"))
    _add_record(_command(commands, "record", _record, "write messages into a file"))
    _add_replay(
        _command(
            commands, "replay", _replay, "publish a recording, or an archive's messages, again"
        )
    )
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], str], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--settings", help="settings module of a Django project")
    return parser


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="its content is the body; - is standard input")
    parser.add_argument("--exchange", default="", help="default: the nameless one")
    parser.add_argument("--routing-key", default="", help="with the nameless exchange, a queue")
    parser.add_argument("--content-type", help="for example application/json")
    parser.add_argument("--header", action="append", default=[], type=_header, metavar="NAME=VALUE")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds")


def _add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="lines are added at its end")
    parser.add_argument("--limit", type=_number, help="stop after so many messages")
    parser.add_argument(
        "--queue-name", help="take messages off this queue; default: get copies, see --exchange"
    )
    parser.add_argument("--exchange", help="default: amq.topic")
    parser.add_argument("--routing-key", action="append", help="may be given several times")


def _add_replay(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("file", nargs="?", help="a recording")
    source.add_argument("--queue", help="an archive: its messages go back to where they come from")
    parser.add_argument("--to", metavar="QUEUE", help="publish them to this queue instead")
    parser.add_argument("--limit", type=_number, help="at most so many messages")


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (separator and name):
        raise argparse.ArgumentTypeError("write it as NAME=VALUE")
    return name, value


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _consume(arguments: Sequence[str]) -> int:
    from twisted.python.usage import UsageError
    from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

    configuration = ServerOptions()
    try:
        configuration.parseOptions(
            ["--nodaemon", "--pidfile=", "--logfile=-", "carrot", *arguments]
        )
        if configuration.subOptions.consume is None:
            raise UsageError("say what to call: --callback=package.module:object")
    except UsageError as error:
        _tell(f"carrot consume: {error}")
        return EXIT_USAGE
    runApp(configuration)
    return 0


def _publish(options: argparse.Namespace) -> str:
    standard = options.file == STANDARD_INPUT
    body = sys.stdin.buffer.read() if standard else Path(options.file).read_bytes()
    kind = {"content_type": options.content_type} if options.content_type else {}
    messaging.publish(
        body,
        options.exchange,
        options.routing_key,
        headers=dict(options.header),
        timeout=options.timeout,
        **kind,
    )
    return "published"


def _record(options: argparse.Namespace) -> str:
    bindings: dict[str, Any] | None = None
    queues: dict[str, Any] | None = None
    if options.exchange or options.routing_key or not options.queue_name:
        bindings = {
            "exchange": options.exchange or "amq.topic",
            "routing_keys": options.routing_key or ["#"],
        }
    if options.queue_name:
        queues = {options.queue_name: {}}
    path = Path(options.file)
    count = 0
    _mend_last_line(path)
    with path.open("a", encoding="utf-8") as file:

        def write(message: Message) -> None:
            nonlocal count
            line = recording.to_line(
                recording.recorded(
                    exchange=message.exchange,
                    routing_key=message.routing_key,
                    body=message.body,
                    headers=message.headers,
                    properties=message.properties,
                )
            )
            file.write(f"{line}\n")
            # It is acknowledged when this returns: from then on it is here only.
            file.flush()
            os.fsync(file.fileno())
            count += 1
            if count == options.limit:
                raise HaltConsumer(reason="the limit is reached")

        with suppress(HaltConsumer):
            messaging.consume(write, bindings, queues, log="none")
    return f"{count} messages are recorded in {path}"


def _mend_last_line(path: Path) -> None:
    """Take away a part of a line that a recording has left which was killed.

    Its message was not acknowledged, and comes again.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        size = start = file.seek(0, os.SEEK_END)
        line = b""
        while start and b"\n" not in line:
            start = max(0, start - CHUNK)
            file.seek(start)
            line = file.read(size - start)
        line = line[line.rfind(b"\n") + 1 :]
        if not line:
            return
        try:
            recording.from_line(line.decode())
        except (InvalidMessage, UnicodeDecodeError):
            file.truncate(size - len(line))
        else:
            file.write(b"\n")


def _replay(options: argparse.Namespace) -> str:
    if options.queue is not None:
        from carrot_twisted import replaying

        host = replaying.host_of(options.queue)
        count = replaying.replay_queue(host, options.queue, options.to, options.limit)
        return f"{count} messages of {options.queue} were put back"
    count = 0
    with open(options.file, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if count == options.limit:
                break
            try:
                message = recording.from_line(line)
                messaging.publish(
                    message.body,
                    "" if options.to else message.exchange,
                    options.to or message.routing_key,
                    headers=message.headers,
                    **message.properties,
                )
            except CarrotError as error:
                raise InvalidMessage(
                    f"{options.file}, line {number}: {error} ({count} messages before it were "
                    "published)"
                ) from error
            count += 1
    return f"{count} messages of {options.file} were published"
