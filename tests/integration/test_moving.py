# SPDX-License-Identifier: Apache-2.0
"""Moving house: tables, messages and publishers of django-carrot, on real servers."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from carrot_twisted import moving, outbox
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.virtual_host import VirtualHost
from tests.conftest import same_servers
from tests.django_carrot import publisher, tables
from tests.processes import ServiceProcess, constants, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Broker
    from tests.processes import Launch

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]

ECHO = f"{tasks.__name__}.echo"
EFFECT = f"{tasks.__name__}.effect"


@pytest.fixture
def old_tables(transactional_db: None) -> Iterator[None]:
    tables.create()
    yield
    tables.drop()


@pytest.fixture
def host(broker_url: str) -> VirtualHost:
    return VirtualHost(broker_url)


def carrot_import(*arguments: str) -> str:
    """Run the command; what it prints."""
    out = io.StringIO()
    call_command("carrot_import", *arguments, stdout=out)
    return out.getvalue()


def counts(output: str) -> dict[str, list[str]]:
    """Numbers of new, here, refused and left, by status."""
    lines = output.partition("\nLogs")[2].splitlines()[1:]
    return {words[0]: words[1:5] for words in map(str.split, lines) if words and words[0].isupper()}


def fill() -> dict[str, str]:
    """Rows of every kind; the message ids."""
    tables.add_schedule(ECHO, task_name="hourly", interval_type="hours", task_args="1, 'a, b'")
    tables.add_schedule(ECHO, task_name=None, active=False)
    tables.add_schedule(ECHO, task_name="hourly", interval_type="days")
    tables.add_schedule("os.mkdir", task_name="planted", content='{"path": "/tmp/x"}')
    tables.add_schedule(ECHO, task_name="broken", content="[1]")
    ids = {
        "waiting": tables.add_log(ECHO, "a, b", [1, 2], content='{"k": 1}', priority=3),
        "forgotten": tables.add_log(ECHO, publish_time=tables.days_ago(30)),
        "unreadable": tables.add_log(ECHO, object()),
        "running": tables.add_log(ECHO, status="IN_PROGRESS"),
        "done": tables.add_log(
            ECHO, status="COMPLETED", output="ok", completion_time=tables.days_ago(1)
        ),
    }
    tables.add_log(ECHO, uuid=ids["waiting"])
    return ids


@pytest.mark.usefixtures("old_tables")
class TestTheCommand:
    def test_without_apply_it_says_what_it_would_do_and_changes_nothing(self) -> None:
        fill()
        before = tables.contents()
        output = carrot_import()
        assert output.rstrip().endswith("Nothing was changed. To do this, add --apply.")
        assert not ScheduledTask.objects.filter(task=ECHO).exists()
        assert not MessageLog.objects.exists()
        assert tables.contents() == before
        applied = carrot_import("--apply")
        assert output.startswith(applied.rstrip())
        # The rows that came over are marked, nothing else.
        changed = [(a, b) for a, b in zip(before, tables.contents(), strict=True) if a != b]
        assert [(a[1], b[1], a[2:] == b[2:]) for a, b in changed] == [("PUBLISHED", "MOVED", True)]

    def test_every_schedule_comes_over_or_says_why_not(self) -> None:
        fill()
        output = carrot_import("--apply").partition("\nLogs")[0]
        schedules = {
            s.task_name: s for s in ScheduledTask.objects.filter(task__in=(ECHO, "os.mkdir"))
        }
        assert set(schedules) == {"hourly", f"{ECHO}-2", f"{ECHO}-3", "planted"}
        hourly = schedules["hourly"]
        assert (hourly.interval_display, hourly.active) == ("Every 1 hour", True)
        assert hourly.positional_arguments == (1, "a, b")
        assert not schedules[f"{ECHO}-2"].active
        assert schedules[f"{ECHO}-3"].interval_type == "days"
        assert not schedules["planted"].active
        assert "switched off: 'os' is not in CARROT['task_modules']" in output
        assert "its old name: 'hourly'" in output
        assert output.count("refused") == 1

        ScheduledTask.objects.filter(task_name="hourly").update(interval_count=2)
        again = carrot_import("--apply").partition("\nLogs")[0]
        assert "left as it is; not the old interval_count" in again
        assert again.count("same") == 3
        assert "new" not in again
        assert ScheduledTask.objects.get(task_name="hourly").interval_count == 2

    def test_logs_come_over_once(self) -> None:
        ids = fill()
        first = counts(carrot_import("--apply"))
        # new, here, refused, left
        assert first == {
            "PUBLISHED": ["1", "0", "2", "1"],
            "IN_PROGRESS": ["0", "0", "0", "1"],
            "COMPLETED": ["0", "0", "0", "1"],
        }
        log = MessageLog.objects.get()
        assert log.pk == UUID(ids["waiting"])
        assert (log.positionals, log.keywords, log.priority) == (("a, b", [1, 2]), {"k": 1}, 3)
        assert counts(carrot_import("--apply"))["PUBLISHED"] == ["0", "0", "2", "1"]
        more = ("--apply", "--max-age=99", "--in-progress", "--history")
        output = carrot_import(*more)
        assert counts(output) == {
            "PUBLISHED": ["1", "0", "2", "0"],
            "IN_PROGRESS": ["1", "0", "0", "0"],
            "COMPLETED": ["1", "0", "0", "0"],
            "MOVED": ["0", "0", "0", "1"],
        }
        assert counts(carrot_import(*more)) == {
            "PUBLISHED": ["0", "0", "2", "0"],
            "COMPLETED": ["0", "1", "0", "0"],
            "MOVED": ["0", "0", "0", "3"],
        }
        assert "object object" in output
        assert "has the same uuid" in output
        states = {str(log.pk): log.status for log in MessageLog.objects.all()}
        assert states == {
            ids["waiting"]: "PUBLISHED",
            ids["forgotten"]: "PUBLISHED",
            ids["running"]: "PUBLISHED",
            ids["done"]: "COMPLETED",
        }

    def test_a_lost_message_is_sent_again_when_the_queue_is_empty(self) -> None:
        """The old publishers' messages do not survive a restart of the broker; the rows do."""
        tables.add_log(ECHO)
        carrot_import("--apply")
        assert not MessageLog.objects.unsent().exists()
        assert outbox.ring_again("default", -1.0, "default") == 1
        assert MessageLog.objects.unsent().count() == 1

    def test_what_has_come_over_does_not_come_again_whatever_became_of_it(self) -> None:
        """Requeued, deleted by a failure callback, or gone after its time."""
        tables.add_log(ECHO, 1)
        carrot_import("--apply")
        MessageLog.objects.get().delete()
        assert counts(carrot_import("--apply")) == {"MOVED": ["0", "0", "0", "1"]}
        assert not MessageLog.objects.exists()

    def test_many_rows_come_over_in_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(moving, "BATCH", 3)
        for number in range(7):
            tables.add_log(ECHO, number)
            tables.add_schedule(ECHO, task_name=str(number))
        assert counts(carrot_import("--apply"))["PUBLISHED"] == ["7", "0", "0", "0"]
        assert sorted(log.positionals[0] for log in MessageLog.objects.all()) == list(range(7))
        assert ScheduledTask.objects.filter(task=ECHO).count() == 7

    @pytest.mark.parametrize("option", ["--max-age=0", "--max-age=1e9", "--from=gone"])
    def test_options_that_make_no_sense_are_refused(self, option: str) -> None:
        with pytest.raises(CommandError, match=r"invalid (days value|choice)"):
            carrot_import(option)

    def test_tables_that_lack_something_are_named_with_the_remedy(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE carrot_scheduledtask DROP COLUMN task_name")
        with pytest.raises(CommandError, match=r"no column task_name.*ADD COLUMN task_name"):
            carrot_import()
        tables.drop()
        with pytest.raises(CommandError, match=r"no table carrot_messagelog.*--from"):
            carrot_import()


@pytest.fixture
def service(
    served: None, old_tables: None, broker_url: str, tmp_path: Path, launch: Launch
) -> Iterator[StartService]:
    """Start ``twistd carrot`` with these settings; ended with the test."""
    running: list[ServiceProcess] = []

    def start(settings: str, **more: str) -> ServiceProcess:
        environment = {
            **same_servers(broker_url),
            "CARROT_TEST_LEDGER": str(tmp_path / "ledger"),
            **more,
        }
        running.append(
            ServiceProcess(tmp_path / "service", (), environment, settings, launch=launch)
        )
        running[0].wait_for("Consuming queue default")
        return running[0]

    yield start
    for process in running:
        process.kill()


def test_waiting_messages_run_once_after_the_import(
    service: StartService, host: VirtualHost, ledger: Ledger, broker: Broker
) -> None:
    """Stop the old service, import, start ours; the queue and its exchange stay as they were."""
    publisher.declare(host)
    for number in range(20):
        publisher.publish(host, EFFECT, f"key {number}")
    # Its second message: as after a broken connection of the old service.
    twice = publisher.publish(host, EFFECT, "twice")
    publisher.send(host, EFFECT, "twice", message_id=twice)
    carrot_import("--apply")
    process = service("tests.settings")
    wait_until(lambda: MessageLog.objects.filter(status="COMPLETED").count() == 21)
    wait_until(lambda: broker.depth("default") == 0)
    assert process.stop() == 0
    assert sorted(ledger()) == sorted([*(f"key {n}" for n in range(20)), "twice"])
    assert broker.depth("default") == broker.depth("default.dead") == 0
    assert counts(carrot_import("--apply")) == {"MOVED": ["0", "0", "0", "21"]}


def test_old_publishers_and_the_new_service_share_a_queue(
    service: StartService, host: VirtualHost, ledger: Ledger, broker: Broker
) -> None:
    publisher.declare(host)
    service("tests.django_carrot.adopting_settings")
    publisher.publish(host, EFFECT, key="in time")
    # Inside a transaction, django-carrot sends before the commit.
    late = str(uuid4())
    publisher.send(host, EFFECT, "late", message_id=late)
    with transaction.atomic():
        ours = MessageLog(task=EFFECT, task_args='["ours"]', queue="default")
        MessageLog.objects.enqueue([ours])
    wait_until(lambda: sorted(ledger()) == ["in time", "ours"])
    tables.add_log(EFFECT, "late", uuid=late)
    wait_until(lambda: sorted(ledger()) == ["in time", "late", "ours"])
    # What was taken over is known to a later import.
    assert counts(carrot_import("--apply")) == {"MOVED": ["0", "0", "0", "2"]}


@pytest.mark.once
def test_a_message_of_an_old_publisher_runs_only_if_its_old_row_says_so(
    service: StartService, host: VirtualHost, ledger: Ledger, broker: Broker
) -> None:
    publisher.declare(host)
    # Rolled back, run by the old service already, of no task of this project.
    dead = [str(uuid4()), tables.add_log(EFFECT, "finished", status="COMPLETED")]
    for message_id in dead:
        publisher.send(host, EFFECT, "not to be run", message_id=message_id)
    dead.append(publisher.publish(host, "os.mkdir", "planted"))
    # The message names another task than its row.
    mixed = tables.add_log(ECHO)
    publisher.send(host, EFFECT, "mixed", message_id=mixed)
    # A row that is not there might yet be committed.
    delays = constants({"service.missing_rows.DELAYS": [0.1, 0.3]})
    service("tests.django_carrot.adopting_settings", **delays)
    wait_until(lambda: broker.depth("default.dead") == 3)
    headers = {p.message_id: p.headers for p, _ in (broker.get("default.dead") for _ in dead)}
    assert set(headers) == set(dead)
    assert "task_modules" in str(headers[dead[2]])
    log = MessageLog.objects.get()
    assert (str(log.pk), log.status) == (mixed, MessageLog.FAILED)
    assert f"names task '{EFFECT}', its row '{ECHO}'" in str(log.exception)
    assert ledger() == []
