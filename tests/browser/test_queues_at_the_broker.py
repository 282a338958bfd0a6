# SPDX-License-Identifier: Apache-2.0
"""What people do to messages: an archive is read, replayed and emptied, a queue is purged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog, OperatorAction
from tests.browser.conftest import check_accessibility, check_width, expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser.conftest import Visitor
    from tests.conftest import Broker

pytestmark = [pytest.mark.rabbitmq, pytest.mark.usefixtures("served")]


@pytest.fixture
def dead(broker: Broker) -> Iterator[Broker]:
    """Four messages that no task could be made of, and the queue that they came from."""
    for name in ("default", "default.dead"):
        broker.channel.queue_declare(name, durable=True)
    for n in range(4):
        headers = {"x-carrot-reason": f"<b>reason {n}</b>"}
        broker.send("default.dead", f"body {n}".encode(), message_id=f"id-{n}", headers=headers)
    yield broker
    broker.channel.queue_delete("default")
    broker.channel.queue_delete("default.dead")


def test_an_archive_is_read_replayed_and_emptied(visitor: Visitor, dead: Broker) -> None:
    page = visitor.open("queues/")
    page.get_by_role("link", name="Archive of default").click()
    expect(page.get_by_text("<b>reason 3</b>")).to_be_visible()
    check_accessibility(page)
    page.get_by_label("Select message 2", exact=True).check()
    page.get_by_role("button", name="Replay the selected").click()
    expect(page.get_by_text("1 message went back to queue default.")).to_be_visible()
    assert dead.get("default")[1] == b"body 1"
    page.get_by_label("Select message 1", exact=True).check()
    page.get_by_role("button", name="Delete the selected").click()
    expect(page.get_by_text("1 message was deleted.")).to_be_visible()
    expect(page.get_by_text("body 0")).to_have_count(0)
    page.get_by_role("link", name="Delete all").click()
    expect(page.get_by_text("This cannot be undone.")).to_be_visible()
    assert dead.depth("default.dead") == 2
    page.get_by_role("button", name="Delete them").click()
    expect(page.get_by_text("The archive is empty.")).to_be_visible()
    assert (dead.depth("default"), dead.depth("default.dead")) == (0, 0)


def test_all_of_an_archive_are_replayed_without_scripts(visitor: Visitor, dead: Broker) -> None:
    page = visitor.open("queues/default/archive/", scripts=False, width=390, scheme="dark")
    check_width(page)
    page.get_by_role("button", name="Replay all").click()
    expect(page.get_by_text("4 messages went back to queue default.")).to_be_visible()
    assert (dead.depth("default"), dead.depth("default.dead")) == (4, 0)


@pytest.mark.parametrize("scripts", [True, False])
def test_a_queue_is_purged_after_a_question(visitor: Visitor, dead: Broker, scripts: bool) -> None:
    dead.send("default", b"{}", message_id="id")
    rows = [MessageLog(task="shop.tasks.book", queue="default") for _ in range(3)]
    MessageLog.objects.bulk_create(rows)
    page = visitor.open("queues/", scripts=scripts)
    page.get_by_role("link", name="Purge default").click()
    expect(page.get_by_text("3 tasks that wait or run are deleted")).to_be_visible()
    page.get_by_role("button", name="Delete them all").click()
    expect(page.get_by_text("3 tasks of queue default were deleted.")).to_be_visible()
    assert not MessageLog.objects.exists()
    assert dead.depth("default") == 0
    assert OperatorAction.objects.get().count == 3
