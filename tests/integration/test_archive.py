# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_archive`` on the archives of a real broker."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import CommandError, call_command
from pika import BasicProperties

from carrot_twisted import handlers
from tests.conftest import Broker
from tests.integration.test_handler_rows import StartService, start
from tests.processes import REPOSITORY, constants, wait_until
from tests.settings import CARROT, QUEUE_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["start"]

#: Failpoints of replays, and the messages in queue and archive when one is killed there.
POINTS = {"replay_before_ack": (1, 3)}

QUEUE, OTHER = "filed.orders", "filed.other"
ARCHIVE = f"{QUEUE}.archived"
#: Else a quorum queue of RabbitMQ 4 drops what was looked at too often.
LIMITS = {} if QUEUE_TYPE == "classic" else {"x-delivery-limit": 1_000_000}


@pytest.fixture(autouse=True)
def queues(broker_url: str, settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two handlers with their archives, empty."""
    settings.CARROT = {**CARROT, "default_broker": broker_url}
    monkeypatch.setattr(handlers, "_registry", {})
    for name in (QUEUE, OTHER):
        handlers.message_handler(name)(lambda body: None)
    names = [queue + suffix for queue in (QUEUE, OTHER) for suffix in ("", ".archived")]
    broker = Broker(broker_url)
    for name in names:
        broker.channel.queue_delete(name)
        arguments = {"x-queue-type": QUEUE_TYPE, **LIMITS}
        broker.channel.queue_declare(name, durable=True, arguments=arguments)
    yield
    for name in names:
        broker.channel.queue_delete(name)
    broker.connection.close()


def file(
    broker: Broker,
    *bodies: str,
    key: str = "order.paid",
    exception: str = "ValueError: no",
    ago: float = 60,
    queue: str = ARCHIVE,
    **properties: Any,
) -> None:
    """Put messages into an archive, as handlers that fail do."""
    failed = datetime.now(UTC) - timedelta(seconds=ago)
    headers = {
        "x-retry-count": 4,
        "x-own": "kept",
        "x-carrot-queue": "elsewhere",
        "x-carrot-exchange": "shop",
        "x-carrot-routing-key": key,
        "x-carrot-exception": exception,
        "x-carrot-reason": "it has failed 5 times",
        "x-carrot-traceback": "Traceback…\n  line 1",
        "x-carrot-last-failure": failed.isoformat(),
    }
    broker.channel.confirm_delivery()
    for body in bodies:
        broker.send(queue, body.encode(), **{"headers": headers, **properties})


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("carrot_archive", *arguments, stdout=out, stderr=StringIO())
    return out.getvalue()


def contents(broker: Broker, queue: str, count: int) -> list[str]:
    """The bodies of a queue, which has so many, taken off it."""
    wait_until(lambda: broker.depth(queue) == count)
    return [broker.get(queue)[1].decode() for _ in range(count)]


def program(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own, whose queues need no handler."""
    return subprocess.Popen(
        [sys.executable, "-m", "django", "carrot_archive", *arguments],
        cwd=REPOSITORY,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options},
    )


@pytest.fixture
def environment(broker_url: str) -> dict[str, str]:
    return {
        **os.environ,
        "CARROT_BROKER_URL": broker_url,
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": str(REPOSITORY),
    }


class TestLooking:
    def test_list_prints_a_line_for_each_message_and_leaves_all_in_order(
        self, broker: Broker
    ) -> None:
        file(broker, "a", message_id="7")
        file(broker, "b", key="order.\x1b[31mgone", exception="KeyError: 'n'")
        file(broker, "c", headers={"x-carrot-last-failure": "long ago"})
        out = run("list")
        assert f"{ARCHIVE}: 3 messages, 3 listed" in out
        assert f"{OTHER}.archived: 0 messages, 0 listed" in out
        lines = [line.split("  ", 3)[2:] for line in out.splitlines() if line.startswith("  ")]
        assert lines[0][0] == "order.paid"
        assert lines[0][1] == "ValueError: no; it has failed 5 times  (id 7)"
        assert "order.\\x1b[31mgone" in out
        assert contents(broker, ARCHIVE, 3) == ["a", "b", "c"]

    def test_show_tells_everything(self, broker: Broker) -> None:
        file(broker, '{"n": "ü"}', message_id="7", content_type="application/json")
        broker.send(ARCHIVE, b"\x00\xff\nsecond")
        out = run("show", "--queue", QUEUE)
        for text in (
            *("message id: 7", "content type: application/json", "routing key: order.paid"),
            *("header x-own: kept", "reason: ValueError: no; it has failed 5 times"),
            *(
                "  traceback:\n    Traceback…\n      line 1\n",
                '  body, 11 bytes:\n    {"n": "ü"}\n',
            ),
            "  body, 9 bytes:\n    \\x00\\xff\n    second\n",
        ):
            assert text in out
        wait_until(lambda: broker.depth(ARCHIVE) == 2)

    @pytest.mark.parametrize(
        ("filters", "found"),
        [
            (["--routing-key", "order.*"], "ab"),
            (["--exception", "KEY"], "bc"),
            (["--exception", "5 times"], "abc"),
            (["--older-than", "1h"], "c"),
            (["--newer-than", "2m"], "ab"),
            (["--id", "7"], "b"),
            (["--routing-key", "order.*", "--exception", "key"], "b"),
            (["--limit", "2"], "ab"),
            (["--queue", ARCHIVE], "abcd"),
            (["--queue", OTHER], ""),
        ],
    )
    def test_filters_say_which(self, broker: Broker, filters: list[str], found: str) -> None:
        file(broker, "body a")
        file(broker, "body b", exception="KeyError: 1", message_id="7")
        file(broker, "body c", exception="KeyError: 2", key="mail", ago=4000)
        file(broker, "body d", headers={})
        out = run("show", *filters)
        assert "".join(name for name in "abcd" if f"body {name}" in out) == found

    def test_a_queue_that_has_no_handler_any_more_and_one_that_is_not_there(
        self, broker: Broker
    ) -> None:
        handlers._registry.clear()
        file(broker, "a")
        assert "1 messages, 1 listed" in run("list", "--queue", QUEUE)
        assert "filed.none.archived: 0 messages" in run("list", "--queue", "filed.none")
        with pytest.raises(CommandError, match="No message handler is registered"):
            run("list")

    def test_what_the_broker_has_moved_is_known_by_its_key(self, broker: Broker) -> None:
        """A quorum queue does so with what comes back too often: nobody of ours has said why."""
        arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": ARCHIVE}
        broker.channel.queue_delete(QUEUE)
        broker.channel.queue_declare(QUEUE, durable=True, arguments=arguments)
        broker.send(QUEUE, b"a")
        method, _, _ = broker.channel.basic_get(QUEUE)
        broker.channel.basic_reject(method.delivery_tag, requeue=False)
        wait_until(lambda: broker.depth(ARCHIVE) == 1)
        assert f"  {QUEUE}  -\n" in run("list")


class TestReplay:
    def test_what_is_meant_goes_back_and_the_rest_stays_in_its_order(self, broker: Broker) -> None:
        file(broker, "a", "b")
        file(broker, "c", key="mail", correlation_id="2", delivery_mode=1, type="t")
        file(broker, "d", "e")
        file(broker, "f", key="mail")
        out = run("replay", "--routing-key", "mail")
        assert f"{ARCHIVE}: 2 of 6 messages put back to {QUEUE}" in out
        wait_until(lambda: broker.depth(QUEUE) == 2)
        found, body = broker.get(QUEUE)
        assert body == b"c"
        assert (found.delivery_mode, found.correlation_id, found.type) == (2, "2", "t")
        assert found.headers["x-own"] == "kept"
        assert found.headers["x-carrot-routing-key"] == "mail"
        assert not {"x-retry-count", "x-carrot-reason"} & set(found.headers)
        assert contents(broker, ARCHIVE, 4) == ["a", "b", "d", "e"]

    def test_a_dry_run_changes_nothing(self, broker: Broker) -> None:
        file(broker, "a", "b")
        for action in ("replay", "delete"):
            out = run(action, "--dry-run")
            assert "2 messages, 2 listed" in out
            assert "Nothing was changed" in out
        assert broker.depth(QUEUE) == 0
        assert contents(broker, ARCHIVE, 2) == ["a", "b"]

    def test_what_its_queue_does_not_take_stays(self, broker: Broker) -> None:
        full = {"x-max-length": 1, "x-overflow": "reject-publish"}
        broker.channel.queue_delete(QUEUE)
        broker.channel.queue_declare(QUEUE, durable=True, arguments=full)
        file(broker, "a", "b", "c")
        out = StringIO()
        with pytest.raises(CommandError, match="takes no message: is it full"):
            call_command("carrot_archive", "replay", stdout=out)
        assert f"{ARCHIVE}: 1 of 3 messages put back" in out.getvalue()
        assert contents(broker, ARCHIVE, 2) == ["b", "c"]
        assert contents(broker, QUEUE, 1) == ["a"]

    def test_without_its_queue_nothing_is_lost(self, broker: Broker) -> None:
        broker.channel.queue_delete(QUEUE)
        file(broker, "a")
        with pytest.raises(CommandError, match=r"no queue filed\.orders: the service makes it"):
            run("replay")
        assert contents(broker, ARCHIVE, 1) == ["a"]

    @pytest.mark.once
    def test_killed_between_it_leaves_both(
        self, broker: Broker, environment: dict[str, str]
    ) -> None:
        file(broker, "a", "b", "c")
        for place, (there, here) in POINTS.items():
            environment["CARROT_FAILPOINT"] = f"{place}:exit"
            assert program("replay", "--queue", QUEUE, env=environment).wait(30) == -signal.SIGKILL
            assert contents(broker, QUEUE, there) == ["a"]
            assert contents(broker, ARCHIVE, here) == ["a", "b", "c"]

    @pytest.mark.once
    def test_a_handler_gets_it_as_if_for_the_first_time(
        self, start: StartService, broker: Broker, tmp_path: Path, settings: Any, broker_url: str
    ) -> None:
        settings.CARROT = {**CARROT, "default_broker": broker_url}
        start("shop")
        body = json.dumps(1)
        broker.channel.basic_publish(
            *("handled.exchange", "shop.paid", body.encode()),
            BasicProperties(headers={"x-fail": 3}),
        )
        wait_until(lambda: broker.depth("handled.shop.archived", 0) == 1)
        assert "1 of 1 messages put back" in run("replay", "--queue", "handled.shop")
        # Of the second life: an attempt, a retry, and the archive.
        wait_until(lambda: len((tmp_path / "ledger").read_text().splitlines()) == 4)
        told = [line.split()[1:4] for line in (tmp_path / "ledger").read_text().splitlines()]
        assert told == [[n, "'handled.exchange'", "shop.paid"] for n in "0101"]
        wait_until(lambda: broker.depth("handled.shop.archived") == 1)


class TestDelete:
    def test_without_yes_it_only_counts(self, broker: Broker) -> None:
        file(broker, "a", "b")
        file(broker, "c", key="mail")
        out = StringIO()
        with pytest.raises(
            CommandError, match=r"Nothing was deleted\. With --yes these 2 messages"
        ):
            call_command("carrot_archive", "delete", "--routing-key", "order.*", stdout=out)
        assert f"{ARCHIVE}: 2 of 3 messages are meant" in out.getvalue()
        assert contents(broker, ARCHIVE, 3) == ["a", "b", "c"]

    def test_with_yes_what_is_meant_goes_and_nothing_else(self, broker: Broker) -> None:
        file(broker, "a", "b", "c")
        file(broker, "d", key="mail")
        file(broker, "o", queue=f"{OTHER}.archived")
        out = run("delete", "--queue", QUEUE, "--routing-key", "order.*", "--limit", "2", "--yes")
        assert f"{ARCHIVE}: 2 of 4 messages deleted" in out
        assert "Ended at 2 messages: see --limit" in out
        assert contents(broker, ARCHIVE, 2) == ["c", "d"]
        assert contents(broker, f"{OTHER}.archived", 1) == ["o"]


@pytest.mark.once
@pytest.mark.only("classic")
def test_long_work_shows_a_bar_on_a_terminal_and_ends_at_ctrl_c(
    broker: Broker, environment: dict[str, str]
) -> None:
    for number in range(8000):
        broker.send(ARCHIVE, str(number).encode())
    wait_until(lambda: broker.depth(ARCHIVE) == 8000)
    environment |= constants({"management.progress.PATIENCE": 0.1})
    ours, its = pty.openpty()
    process = program("list", "--queue", QUEUE, "--id", "none", env=environment, stderr=its)
    os.close(its)
    shown = b""
    while b" of 8000" not in shown:
        shown += os.read(ours, 1000)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 1
    shown += os.read(ours, 10_000)
    os.close(ours)
    assert f"\r{ARCHIVE}: looking [".encode() in shown
    assert b"Interrupted" in shown
    wait_until(lambda: broker.depth(ARCHIVE) == 8000)
    assert [int(broker.get(ARCHIVE)[1]) for _ in range(100)] == list(range(100))
