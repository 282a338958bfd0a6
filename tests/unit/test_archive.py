# SPDX-License-Identifier: Apache-2.0
"""Archived messages: what they say, which are meant, and the command's arguments and bar."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any

import pika
import pytest
from django.core.management import CommandError, call_command, load_command_class

from carrot_twisted import archive, conf, handlers
from carrot_twisted.archive import Archived, Filters
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.management.commands import carrot_archive
from carrot_twisted.management.progress import INTERVAL, PATIENCE, Progress

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def archived(ago: float | None = None, **headers: Any) -> Archived:
    named = {f"x-carrot-{name.replace('_', '-')}": value for name, value in headers.items()}
    if ago is not None:
        named["x-carrot-last-failure"] = (NOW - timedelta(seconds=ago)).isoformat()
    return Archived(tag=1, properties=pika.BasicProperties(headers=named), body=b"")


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"x-death": "no list"},
        {"x-death": []},
        {"x-carrot-routing-key": 7, "x-carrot-exception": [], "x-carrot-last-failure": {}},
        {"x-carrot-last-failure": "yesterday"},
        {"x-carrot-last-failure": "2026-11-28T12:00:00"},
    ],
)
def test_a_message_that_says_nothing_useful_is_told_as_such(headers: Any) -> None:
    one = Archived(tag=1, properties=pika.BasicProperties(headers=headers), body=b"")
    assert (one.routing_key, one.reason, one.failed_at) == ("", "", None)
    assert Filters().match(one, NOW)
    assert not Filters(older_than=timedelta()).match(one, NOW)


@pytest.mark.parametrize(
    ("filters", "meant"),
    [
        (Filters(older_than=timedelta(seconds=59)), True),
        (Filters(older_than=timedelta(seconds=60)), False),
        (Filters(newer_than=timedelta(seconds=61)), True),
        (Filters(newer_than=timedelta(seconds=60)), False),
        (Filters(routing_key="order.?"), True),
        (Filters(routing_key="ORDER.*"), False),
        (Filters(routing_key="order"), False),
        (Filters(exception="valueERROR"), True),
        (Filters(exception="ü"), False),
    ],
)
def test_filters(filters: Filters, meant: bool) -> None:
    one = archived(60, routing_key="order.1", exception="ValueError: no")
    assert filters.match(one, NOW) is meant


def test_archives_are_those_of_the_handlers_or_of_the_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handlers, "_registry", {})
    handlers.message_handler(["a", "b"])(lambda body: None)
    settings = conf.current()
    assert [one.name for one in archive.archives(settings, [])] == ["a.archived", "b.archived"]
    named = archive.archives(settings, ["b.archived", "gone", "b"])
    assert [one.queue for one in named] == ["b", "gone"]


def test_dead_letters_of_a_queue_of_tasks_are_an_archive_as_well(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    monkeypatch.setattr(handlers, "_registry", {})
    settings.CARROT = {
        "default_broker": "amqp://near/",
        "queues": [{"name": "tasks", "host": "amqp://far/"}],
    }
    (one,) = archive.archives(conf.current(), ["tasks.dead", "tasks.dead"])
    assert (one.name, one.queue, one.host.host) == ("tasks.dead", "tasks", "far")
    with pytest.raises(CarrotConfigException, match="Cannot find queue called gone"):
        archive.archives(conf.current(), ["gone.dead"])
    # A handler may have such a name, too.
    handlers.message_handler("tasks.dead")(lambda body: None)
    (one,) = archive.archives(conf.current(), ["tasks.dead"])
    assert (one.name, one.queue, one.host.host) == ("tasks.dead.archived", "tasks.dead", "near")


def test_what_is_replayed_has_not_the_counts_of_its_former_life() -> None:
    counts = {"x-retry-count": 4, "x-delivery-count": 3, "x-acquired-count": 3, "x-death": []}
    one = archived(60, reason="it has failed 5 times", exception="ValueError", first_failure="then")
    one.headers.update(counts, own="kept", CC=["mail"])
    headers = archive._replayed(one, "x-retry-count").headers
    assert set(headers) == {
        *("own", "x-carrot-exception", "x-carrot-first-failure", "x-carrot-last-failure")
    }


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), ("12h", 43_200), ("3d", 259_200), ("0s", 0)]
)
def test_an_age(text: str, seconds: float) -> None:
    assert carrot_archive.age(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "3", "d", "-1d", "nand", "infd", "1e9d", "3w"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(CommandError, match="invalid age value"):
        call_command("carrot_archive", "list", f"--older-than={text}")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["purge"],
        ["list", "--older-than", "soon"],
        ["list", "--limit", "0"],
        ["list", "--yes"],
        ["replay", "--yes"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("carrot_archive", *arguments)


@pytest.mark.parametrize("action", [None, "list", "show", "replay", "delete"])
def test_its_help_says_what_it_cannot_promise(action: str | None) -> None:
    parser = load_command_class("carrot_twisted", "carrot_archive").create_parser("manage.py", "x")
    if action is not None:
        (actions,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = actions.choices[action]
    text = parser.format_help()
    assert "Not promised:\n  - that the order stays" in text
    assert "it leaves both" in text


class Stream(StringIO):
    """Standard error as a command has it."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str, style: Any = None, ending: str = "\n") -> int:
        return super().write(text + ending)


class TestTheBar:
    def progress(self, terminal: bool = True) -> Progress:
        self.now = 0.0
        self.stream = Stream(terminal)
        return Progress(self.stream, "mail: looking", 4, lambda: self.now)

    def test_comes_with_long_work_and_goes_with_its_end(self) -> None:
        progress = self.progress()
        progress.step()
        assert self.stream.getvalue() == ""
        self.now = PATIENCE
        progress.step()
        bar = "mail: looking [###############...............] 2 of 4"
        assert self.stream.getvalue() == f"\r{bar}"
        self.now += INTERVAL / 2
        progress.step()
        assert self.stream.getvalue() == f"\r{bar}"
        progress.end()
        assert self.stream.getvalue() == f"\r{bar}\r{' ' * len(bar)}\r"

    def test_is_not_for_files(self) -> None:
        progress = self.progress(terminal=False)
        self.now = 100.0
        progress.step()
        progress.end()
        assert self.stream.getvalue() == ""
