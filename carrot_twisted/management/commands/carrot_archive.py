# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_archive``: look at archived messages, have them handled again, delete them."""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from carrot_twisted import archive, conf, copies, handlers, outcomes, showing
from carrot_twisted.archive import Archived, Filters
from carrot_twisted.exceptions import CarrotError
from carrot_twisted.management.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.core.management.base import CommandParser

    from carrot_twisted.archive import Archive, Pass

#: Characters of one value on a line.
MAX_VALUE = 300
#: Characters of a body or traceback that ``show`` prints.
MAX_TEXT = 20_000
#: Messages that are printed unless --limit says otherwise.
LISTED, SHOWN = 100, 10

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
#: A hundred years, in seconds.
MAX_AGE = 36_500 * 86_400

PROMISES = """\
What is meant is found by looking at each message in turn. All of them are held until the end, and
what is not meant goes back to its place in the archive, also if this program is killed.

Not promised:
  - that the order stays if another program takes from the archive, or puts back, meanwhile;
    nor in an archive that is a quorum queue and holds more than 32 messages that are not meant:
    RabbitMQ puts them back in any order;
  - that somebody else who looks meanwhile finds what is held here;
  - that replay puts a message back once: killed between the broker's word that the queue has it
    and the end of the archived copy, it leaves both;
  - that a quorum queue which was declared without our x-delivery-limit keeps what is looked at
    often: RabbitMQ 4 drops it after 20 times;
  - ages of messages that no handler of this package has archived: they say none, so
    --older-than and --newer-than do not mean them.
A broker ends a look that takes longer than its delivery timeout (30 minutes, unless it is set
otherwise): nothing is lost, and what was done until then stays done."""


def age(text: str) -> timedelta:
    """Read an age: a number, and its unit.

    Raises:
        ValueError: it is none.
    """
    value = float(text[:-1]) * UNITS.get(text[-1:], -1)
    if not 0 <= value <= MAX_AGE:
        raise ValueError(text)
    return timedelta(seconds=value)


def count(text: str) -> int:
    """Read a whole number above 0.

    Raises:
        ValueError: it is none.
    """
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


class Command(BaseCommand):
    """One action on the archives that are meant."""

    help = (
        "Messages that handlers and callbacks could not handle, in the archives <queue>.archived: "
        "list them, show them whole, replay them (back to their queues, to be tried again as if "
        "for the first time), or delete them. --queue=<queue>.dead names "
        "messages that no task can be made of."
    )

    def create_parser(self, *args: Any, **kwargs: Any) -> CommandParser:
        """With what it does not promise, on lines as they are."""
        kwargs |= {"epilog": PROMISES, "formatter_class": argparse.RawDescriptionHelpFormatter}
        return super().create_parser(*args, **kwargs)

    def add_arguments(self, parser: CommandParser) -> None:
        """An action, and what it is for."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        for name, text, limit in (
            ("list", "a line for each message", LISTED),
            ("show", "all that there is to know of each message", SHOWN),
            ("replay", "have them handled again", None),
            ("delete", "delete them for good", None),
        ):
            one = actions.add_parser(
                name,
                help=text,
                description=f"{text[0].upper()}{text[1:]}.",
                epilog=PROMISES,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            _add_filters(one, limit)
            if name in ("replay", "delete"):
                one.add_argument(
                    "--dry-run", action="store_true", help="List them; change nothing."
                )
            if name == "delete":
                one.add_argument("--yes", action="store_true", help="Without it, only count them.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Do it.

        Raises:
            CommandError: settings or broker are not as they should be.
        """
        self._options = options
        self._left: int | None = options["limit"]
        self._filters = Filters(
            routing_key=options["routing_key"],
            exception=options["exception"],
            message_id=options["id"],
            older_than=options["older_than"],
            newer_than=options["newer_than"],
        )
        try:
            for name in handlers.modules():
                import_module(name)
            meant = archive.archives(conf.current(), options["queue"])
        except CarrotError as error:
            raise CommandError(str(error)) from error
        getattr(self, f"_{options['action']}")(meant)

    def _list(self, meant: list[Archive]) -> None:
        for one in meant:
            with self._looking(one, "looking") as (looked, found):
                lines = [_line(message) for message in found]
            self.stdout.write(f"{one.name}: {looked.total} messages, {len(lines)} listed")
            self.stdout.writelines(f"{line}\n" for line in lines)
        self._tell_limit()

    def _show(self, meant: list[Archive]) -> None:
        for one in meant:
            with self._looking(one, "looking") as (_, found):
                texts = ["\n".join(_lines(message)) for message in found]
            for text in texts:
                self.stdout.write(f"{one.name}\n{text}\n")
        self._tell_limit()

    def _replay(self, meant: list[Archive]) -> None:
        if self._options["dry_run"]:
            self._list(meant)
            self.stdout.write("Nothing was changed. Without --dry-run these are replayed.")
            return
        for one in meant:
            self._act(one, archive.Pass.replay, "replaying", f"put back to {one.queue}")
        self._tell_limit()

    def _delete(self, meant: list[Archive]) -> None:
        if self._options["dry_run"]:
            self._list(meant)
            self.stdout.write("Nothing was changed. Without --dry-run these are deleted.")
            return
        if self._options["yes"]:
            for one in meant:
                self._act(one, archive.Pass.delete, "deleting", "deleted")
            self._tell_limit()
            return
        total = 0
        for one in meant:
            with self._looking(one, "counting") as (looked, found):
                number = sum(1 for _ in found)
            self.stdout.write(f"{one.name}: {number} of {looked.total} messages are meant")
            total += number
        raise CommandError(f"Nothing was deleted. With --yes these {total} messages are, for good.")

    def _act(
        self, one: Archive, action: Callable[[Pass, Archived], None], doing: str, done: str
    ) -> None:
        """Do it with each message that is meant, and say with how many, whatever happens."""
        number = 0
        total: int | None = None
        try:
            with self._looking(one, doing) as (looked, found):
                total = looked.total
                for message in found:
                    action(looked, message)
                    number += 1
        finally:
            if total is not None:
                self.stdout.write(f"{one.name}: {number} of {total} messages {done}")

    @contextmanager
    def _looking(self, one: Archive, doing: str) -> Iterator[tuple[Pass, Iterator[Archived]]]:
        """A pass, and those of its messages that are meant, up to the limit."""
        try:
            with archive.opened(one) as looked:
                progress = Progress(self.stderr, f"{one.name}: {doing}", looked.total)
                try:
                    yield looked, self._meant(looked, progress)
                finally:
                    progress.end()
        except CarrotError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted. What is not told to be done was not.") from None

    def _meant(self, looked: Pass, progress: Progress) -> Iterator[Archived]:
        now = datetime.now(UTC)
        for message in looked if self._left != 0 else ():
            progress.step()
            if not self._filters.match(message, now):
                continue
            yield message
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    return

    def _tell_limit(self) -> None:
        if self._left == 0:
            self.stdout.write(f"Ended at {self._options['limit']} messages: see --limit")


def _add_filters(parser: CommandParser, limit: int | None) -> None:
    parser.add_argument(
        "--queue",
        action="append",
        default=[],
        metavar="NAME",
        help="Queue of a handler or callback, or <queue>.dead of tasks; may be given several times "
        "(all handlers').",
    )
    parser.add_argument(
        "--routing-key",
        metavar="KEY",
        help="That the message was published with; * stands for any characters.",
    )
    parser.add_argument(
        "--exception", metavar="TEXT", help="A part of the exception, or of the reason."
    )
    parser.add_argument("--id", metavar="ID", help="The message_id.")
    for name, what in (("--older-than", "Failed longer ago"), ("--newer-than", "Failed since")):
        parser.add_argument(
            name, type=age, metavar="AGE", help=f"{what}: 90s, 15m, 12h or 3d, for example."
        )
    parser.add_argument(
        "--limit",
        type=count,
        default=limit,
        metavar="N",
        help=f"So many messages at most ({limit or 'all of them'}).",
    )


def _time(when: datetime | None) -> str:
    return "-" if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _one_line(value: Any, limit: int = MAX_VALUE) -> str:
    return outcomes.one_line(str(value), limit)


def _line(one: Archived) -> str:
    words = [_time(one.failed_at).ljust(20), one.routing_key or "-", one.reason or "-"]
    if one.properties.message_id:
        words.append(f"(id {one.properties.message_id})")
    return f"  {'  '.join(map(_one_line, words))}"


def _lines(one: Archived) -> Iterator[str]:
    headers = dict(one.headers)
    traceback = str(headers.pop(copies.TRACEBACK_HEADER, ""))
    given = {name: getattr(one.properties, name) for name in showing.PROPERTIES}
    values = {
        "failed": _time(one.failed_at),
        "routing key": one.routing_key,
        "reason": one.reason,
        **{name.replace("_", " "): value for name, value in given.items()},
        **{f"header {name}": value for name, value in headers.items()},
    }
    for name, value in values.items():
        if value not in (None, ""):
            yield f"  {_one_line(name)}: {_one_line(value, MAX_TEXT)}"
    body = showing.readable(one.body, one.properties.content_encoding, MAX_TEXT)
    for name, text in (("traceback", traceback), (f"body, {len(one.body)} bytes", body)):
        if text:
            yield f"  {name}:"
            yield from (f"    {_one_line(line, MAX_TEXT)}" for line in text.split("\n"))
