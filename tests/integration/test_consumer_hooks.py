# SPDX-License-Identifier: Apache-2.0
"""A project's consumer in a running service: its hooks read the messages, and fail them."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from carrot_twisted import publisher
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.conftest import run_python
from tests.integration.test_service import finished
from tests.pages import DOCS, blocks
from tests.processes import ServiceProcess, wait_until
from tests.project import tasks
from tests.project.consumers import ORDERS

if TYPE_CHECKING:
    from tests.conftest import Broker

StartService = Callable[..., ServiceProcess]
Ledger = Callable[[], list[str]]
CONSUMERS = "tests.project.consumers"


def final(*rows: MessageLog, seconds: float = 30.0) -> list[MessageLog]:
    """Wait until these rows are final; returns them in order."""
    return finished(rows, seconds)


@pytest.mark.once
def test_the_documented_retry_recipe_works_as_written(
    start_service: StartService, ledger: Ledger
) -> None:
    start_service(CARROT_TEST_CONSUMER=f"{CONSUMERS}.CustomConsumer")
    publish_message(f"{CONSUMERS}.retry_test", 1)

    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.FAILED).exists())
    assert ledger() == [f"attempt {n}" for n in range(1, 6)]
    (row,) = MessageLog.objects.all()
    assert row.positionals == (5,)
    assert "name 'do_stuff' is not defined" in (row.exception or "")
    assert "ATTEMPT NUMBER: 5" in (row.log or "")
    assert "Failure callback failure_callback succeeded" in (row.log or "")


def order(broker: Broker, number: int, body: bytes | None = None, **order: float) -> uuid.UUID:
    """Send an order's message; returns the id of its row."""
    content = {"event": "paid", "order": {"number": number, **order}}
    broker.send(
        "default",
        json.dumps(content).encode() if body is None else body,
        app_id="shop",
        correlation_id=f"order-{number}",
    )
    return uuid.uuid5(ORDERS, f"order-{number}")


def test_foreign_messages_get_rows_and_run_once_each(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    start_service(CARROT_TEST_CONSUMER=f"{CONSUMERS}.Orders", CARROT_TEST_CONCURRENCY="3")
    keys = [order(broker, n) for n in range(20)]
    for n in range(20):
        order(broker, n)
    bad = order(broker, 99, body=b"\xff no json")
    unknown = order(broker, 98, body=b'{"event": "stolen", "order": {}}')
    wait_until(lambda: MessageLog.objects.filter(status__in=MessageLog.FINAL).count() == 22)

    assert Counter(ledger()) == {f"order {n}": 1 for n in range(20)}
    rows = MessageLog.objects.in_bulk(keys)
    assert [rows[key].output for key in keys] == [f"order {n} is paid" for n in range(20)]
    assert rows[keys[7]].keywords == {"number": 7}
    failed = MessageLog.objects.in_bulk([bad, unknown])
    assert failed[bad].status == failed[unknown].status == MessageLog.FAILED
    assert "can't decode byte 0xff" in (failed[bad].exception or "")
    assert failed[unknown].exception == "'stolen'"
    wait_until(lambda: broker.depth("default") == 0)
    assert broker.depth("default.dead") == 0


def test_a_foreign_task_survives_the_death_of_its_worker(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    """Its message comes again; and were it gone, its arguments are in the row."""
    consumer = f"{CONSUMERS}.Orders"
    first = start_service(CARROT_TEST_CONSUMER=consumer)
    key = order(broker, 1, pause=1.0)
    wait_until(lambda: MessageLog.objects.filter(pk=key, status=MessageLog.IN_PROGRESS).exists())
    first.kill()
    broker.channel.queue_purge("default")
    assert MessageLog.objects.get(pk=key).keywords == {"number": 1, "pause": 1.0}

    start_service(CARROT_TEST_CONSUMER=consumer)
    wait_until(lambda: MessageLog.objects.filter(pk=key, status=MessageLog.COMPLETED).exists())
    row = MessageLog.objects.get(pk=key)
    assert (row.output, row.attempts, row.crashes) == ("order 1 is paid", 2, 1)
    assert ledger() == ["order 1"]


def wish(broker: Broker, what: str, row: MessageLog | None = None) -> None:
    """A message that asks the guard for something."""
    headers = {"x-wish": what, "type": "tests.project.tasks.effect"}
    broker.send("default", b"{}", headers=headers, message_id=str(row.pk if row else uuid.uuid4()))


def waiting_row(key: str) -> MessageLog:
    """A row whose message the test sends itself."""
    row = create_message(tasks.effect, task_args=[key]).row
    row.save(force_insert=True)
    MessageLog.objects.filter(pk=row.pk).update(confirmed_at=row.publish_time)
    return row


@pytest.mark.once
def test_on_message_may_do_everything_with_a_message(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start_service(CARROT_TEST_CONSUMER=f"{CONSUMERS}.Guard", CARROT_TEST_CONCURRENCY="2")
    wishes = ("raise", "leave", "swallow", "ack", "fail", "atomic")
    rows = {what: waiting_row(what) for what in wishes}
    for what, row in rows.items():
        wish(broker, what, row)
    rejected = waiting_row("rejected once")
    wish(broker, "reject", rejected)
    wish(broker, "raise")
    wish(broker, "swallow")
    usual = publish_message(tasks.effect, "as usual")
    failing = publish_message(tasks.fail, "no luck")
    hook_fails = publish_message(tasks.fail, "break the hook")

    done = dict(zip(rows, final(*rows.values()), strict=True))
    assert {what: row.status for what, row in done.items()} == {
        "raise": MessageLog.FAILED,
        "leave": MessageLog.FAILED,
        "swallow": MessageLog.COMPLETED,
        "ack": MessageLog.COMPLETED,
        "fail": MessageLog.FAILED,
        "atomic": MessageLog.FAILED,
    }
    # Its claim would wait for the hook's transaction, and that for the claim.
    assert (done["atomic"].exception or "").startswith("Guard has a transaction open")
    assert done["atomic"].priority == 0
    assert done["raise"].exception == "on_message is broken"
    assert "RuntimeError: on_message is broken" in (done["raise"].traceback or "")
    assert (done["leave"].exception, done["fail"].exception) == ("3", "refused by the guard")
    assert [row.status for row in final(rejected, usual, failing, hook_fails)] == [
        MessageLog.COMPLETED,
        MessageLog.COMPLETED,
        MessageLog.FAILED,
        MessageLog.FAILED,
    ]
    assert MessageLog.objects.get(pk=failing.pk).exception == "no luck"
    assert sorted(ledger()) == [
        "as usual",
        "fail(tests.project.tasks.effect, 3)",
        f"fail(tests.project.tasks.effect, {done['atomic'].exception})",
        "fail(tests.project.tasks.effect, on_message is broken)",
        "fail(tests.project.tasks.effect, refused by the guard)",
        "fail(tests.project.tasks.fail, break the hook)",
        "fail(tests.project.tasks.fail, no luck)",
        "rejected once",
    ]
    # A message without a row, whose hook has raised, is kept with the reason.
    wait_until(lambda: broker.depth("default.dead") == 1)
    properties, body = broker.get("default.dead")
    assert body == b"{}"
    assert "on_message is broken" in str(properties.headers)
    assert service.stop() == 0
    assert broker.depth("default") == 0


@pytest.mark.once
def test_a_hook_that_does_not_return_holds_up_no_stop(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    service = start_service(
        "--shutdown-timeout=0.5",
        CARROT_TEST_CONSUMER=f"{CONSUMERS}.Guard",
        CARROT_TEST_CONCURRENCY="1",
    )
    row = waiting_row("after all")
    wish(broker, "hang", row)
    behind = publish_message(tasks.effect, "behind it")
    wait_until(lambda: ledger() == ["hangs"])
    service.stop()
    wait_until(lambda: broker.depth("default") == 2)
    rows = MessageLog.objects.filter(pk__in=[row.pk, behind.pk])
    assert {(one.status, one.attempts) for one in rows} == {(MessageLog.PUBLISHED, 0)}


@pytest.mark.once
def test_many_messages_through_a_hook_run_once_also_across_a_stop(
    start_service: StartService, broker: Broker, ledger: Ledger
) -> None:
    consumer = f"{CONSUMERS}.Slow"
    first = start_service(CARROT_TEST_CONSUMER=consumer)
    logs = publish_many([create_message(tasks.effect, task_args=[str(n)]) for n in range(600)])
    assert publisher.flush(20)
    wait_until(lambda: len(ledger()) > 100)
    assert first.stop() == 0
    assert len(ledger()) < 600
    start_service(CARROT_TEST_CONSUMER=consumer)
    done = final(*logs)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    assert Counter(ledger()) == {str(n): 1 for n in range(600)}
    wait_until(lambda: broker.depth("default") == 0)


@pytest.mark.once
def test_a_process_that_dies_in_a_hook_loses_no_message(
    start_service: StartService, ledger: Ledger
) -> None:
    row = publish_message(tasks.effect, "after all")
    consumer = f"{CONSUMERS}.Slow"
    first = start_service(CARROT_TEST_CONSUMER=consumer, CARROT_TEST_DIE="1", wait=False)
    assert first.ends() == -9
    start_service(CARROT_TEST_CONSUMER=consumer, CARROT_TEST_DIE="1")
    (done,) = final(row)
    assert done.status == MessageLog.COMPLETED
    assert ledger() == ["dies", "after all"]


#: The rest of the page's program: there is another set, one begins twice, and both do their work.
REST = """
    from carrot_twisted.models import MessageLog
    from tests.processes import wait_until
    other = ConsumerSet(
        get_host_from_name("other"), "other", logging.getLogger("mine"), concurrency=2, name="set"
    )
    other.start_consuming()
    try:
        other.start_consuming()
    except RuntimeError as error:
        print(error)
    wait_until(lambda: not MessageLog.objects.unfinished().exists())
    other.stop_consuming()
"""


@pytest.mark.once
def test_a_consumer_set_consumes_in_any_program(
    served: None, broker_url: str, ledger: Ledger, broker: Broker
) -> None:
    rows = [
        publish_message(tasks.effect, "here"),
        publish_message(tasks.effect, "two", queue="other"),
    ]
    assert publisher.flush(10)
    (program,) = (one for one in blocks(DOCS / "consumers.md", "python") if "ConsumerSet" in one)
    rest = "    ...  # the rest of the program\n"
    assert rest in program
    done = run_python(f"{program.replace(rest, REST)}print('done')", broker_url)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "other-set consumes already; stop_consuming ends that.",
        "done",
    ]
    assert sorted(ledger()) == ["here", "two"]
    assert {row.status for row in final(*rows)} == {MessageLog.COMPLETED}
    assert broker.depth("default") == 0


@pytest.mark.once
def test_a_consumer_set_needs_a_consumer() -> None:
    from carrot_twisted.consumer import ConsumerSet
    from carrot_twisted.exceptions import CarrotConfigException

    with pytest.raises(CarrotConfigException, match="is not a subclass"):
        ConsumerSet.get_consumer_class("pathlib.Path")
