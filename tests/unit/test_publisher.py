# SPDX-License-Identifier: Apache-2.0
"""Which publisher a process has: one, its own, made on first use; another one after a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from carrot_twisted import conf, publisher, signals
from carrot_twisted.models import MessageLog
from carrot_twisted.publisher import _Link
from carrot_twisted.publishing import WINDOW
from carrot_twisted.testing.memory_broker import MemoryBroker, MemoryConnection
from tests.unit.test_publishing import post

if TYPE_CHECKING:
    from carrot_twisted.outbox import Post
    from tests.unit.conftest import RecordingPublisher


class Fake:
    """Instead of a thread."""

    alive = True

    def __init__(self) -> None:
        self.timeouts: list[float] = []

    def submit(self, rows: object, using: str) -> None: ...

    def flush(self, timeout: float) -> bool:
        self.timeouts.append(timeout)
        return False

    def submit_post(self, host: object, post: object, settled: object) -> None: ...

    def alarm(self, host: object) -> str | None:
        return None


@pytest.fixture
def nothing_yet(monkeypatch: pytest.MonkeyPatch, handed_over: RecordingPublisher) -> None:
    """A process that has published nothing."""
    monkeypatch.setattr(publisher, "ThreadPublisher", Fake)
    publisher.install(None)


@pytest.mark.usefixtures("nothing_yet")
class TestFirstUse:
    def test_it_is_made_once(self) -> None:
        first = publisher.current()
        assert isinstance(first, Fake)
        assert publisher.current() is first

    def test_a_process_that_published_nothing_has_nothing_to_flush(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publisher, "ThreadPublisher", lambda: pytest.fail("was made"))
        assert publisher.flush(1.0)

    def test_flush_asks_the_publisher_that_is_there(self) -> None:
        one = publisher.current()
        assert isinstance(one, Fake)
        assert publisher.flush(2.5) is False
        assert one.timeouts == [2.5]

    def test_after_a_fork_the_child_makes_its_own(self) -> None:
        parents = publisher.current()
        publisher._after_fork()
        assert publisher.current() is not parents

    def test_where_its_thread_has_died_there_is_a_new_one(self) -> None:
        before = publisher.current()
        assert isinstance(before, Fake)
        before.alive = False
        assert publisher.current() is not before

    def test_also_where_the_fork_was_not_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parents = publisher.current()
        monkeypatch.setattr("os.getpid", lambda: -1)
        assert publisher.current() is not parents


def test_another_one_takes_the_place_and_gives_it_back(handed_over: RecordingPublisher) -> None:
    other = Fake()
    assert publisher.install(other) is handed_over
    assert publisher.current() is other
    assert publisher.install(handed_over) is other


def test_committed_rows_go_to_the_publisher_that_has_the_place(
    handed_over: RecordingPublisher,
) -> None:
    rows = [MessageLog(task="app.work")]
    signals.rows_committed.send_robust(sender=MessageLog, rows=rows, using="default")
    assert handed_over.rows == rows


class Thread:
    """What a link tells, instead of the publisher's thread."""

    def __init__(self) -> None:
        self.told: list[str | None] = []

    def settled(self, _post: Post, error: str | None) -> None:
        self.told.append(error)

    def settle_waiters(self) -> None: ...


def test_a_broker_is_silent_only_where_it_does_not_answer_at_all() -> None:
    """An answer that settles no message yet, such as a return, is one: there is much to do."""
    thread: Any = Thread()
    broker = MemoryBroker()
    connection: Any = MemoryConnection(broker)
    link = _Link(thread, conf.current().queue("default").host)
    link._opened(connection)
    connection.run()
    broker.confirms_at_once = False
    link.publish([post(f"m{number}") for number in range(WINDOW + 5)])
    connection.run()
    (channel,) = (one for one in connection.channels if one.confirming)
    for tag in (1, 2, 3):
        link.check_progress()
        # There is no queue yet: the message is kept, and the queue declared.
        channel.confirm(tag)
        link.check_progress()
    link.check_progress()
    assert thread.told == []
    link.check_progress()
    # What was sent may still be confirmed.
    assert thread.told == ["the broker did not answer in time"] * 2
