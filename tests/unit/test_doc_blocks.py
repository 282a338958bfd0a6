# SPDX-License-Identifier: Apache-2.0
"""The Python of those pages that have no test of their own runs, as far as it needs no server."""

from __future__ import annotations

import asyncio
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.utils import timezone

from carrot_twisted import conf, signals
from carrot_twisted.adopting import AdoptingConsumer
from carrot_twisted.consumer import Consumer, ConsumerSet
from carrot_twisted.models import MessageLog, ScheduledTask
from carrot_twisted.testing import in_memory
from carrot_twisted.utilities import publish_message
from tests.pages import DOCS, PAGES, blocks, label
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


@pytest.fixture
def read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> Callable[[str], tuple[ModuleType, list[str]]]:
    """Make the module of tasks of a page; it and the other blocks."""

    def made(page: str) -> tuple[ModuleType, list[str]]:
        package = f"app_of_{page.partition('.')[0].replace('-', '_')}"
        texts = [text.replace("myapp", package) for text in blocks(DOCS / page, "python")]
        first = f"# {package}/tasks.py"
        (tmp_path / package).mkdir()
        module = [text for text in texts if text.startswith(first)]
        (tmp_path / package / "tasks.py").write_text("\n\n".join(module))
        monkeypatch.syspath_prepend(tmp_path)
        settings.CARROT = {**settings.CARROT, "task_modules": [f"{package}.tasks"]}
        return import_module(f"{package}.tasks"), [text for text in texts if text not in module]

    return made


def run(text: str, **names: Any) -> dict[str, Any]:
    """Run a block as a module of its own; what it defines."""
    scope = {"__name__": "a_block", **names}
    exec(text, scope)  # noqa: S102
    return scope


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_settings_that_pages_show_have_no_mistakes(
    page: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    for variable, value in (
        *(("BROKER_URL", "amqp://localhost"), ("BROKER_PASSWORD", "secret")),
        *(("DATABASE_URL", "postgres://ann:secret@localhost/shop"), ("SECRET_KEY", "secret")),
    ):
        monkeypatch.setenv(variable, value)
    for text in blocks(page, "python"):
        if re.search(r"^CARROT = ", text, re.MULTILINE):
            path = Path(__file__)
            shown = run(
                f"import os\n{text}", INSTALLED_APPS=[], DATABASES={"default": {}}, BASE_DIR=path
            )
            settings.CARROT = shown["CARROT"]
            assert conf.problems() == ()


@pytest.mark.django_db
def test_long_tasks() -> None:
    telling, stopping, moving = blocks(DOCS / "long-tasks.md", "python")
    scope = {**run(telling), **run(stopping), **run(moving)}
    scope["import_rows"](["a", "b"])
    scope["move_files"](["a", "b"])
    waits, runs = publish_message(tasks.echo), publish_message(tasks.echo)
    rows = MessageLog.objects.all()
    rows.filter(pk=waits.pk).update(task="myapp.tasks.import_rows")
    rows.filter(pk=runs.pk).update(task="myapp.tasks.report", status="IN_PROGRESS")
    scope["stop_reports"]("ann")
    waits.refresh_from_db()
    runs.refresh_from_db()
    assert (waits.status, runs.status) == ("CANCELLED", "IN_PROGRESS")
    assert "the data was wrong" in str(runs.cancel_request)


def test_coroutines(read: Callable[[str], tuple[ModuleType, list[str]]]) -> None:
    module, others = read("async.md")
    assert asyncio.iscoroutinefunction(module.fetch)
    pages = [run(text) for text in others if "in_reactor" in text]
    assert [asyncio.iscoroutinefunction(one["page"]) for one in pages] == [True]


@pytest.mark.django_db
def test_schedules(
    read: Callable[[str], tuple[ModuleType, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, others = read("scheduling.md")
    for text in others:
        # That one needs a reactor; tests/integration/test_scheduler.py has it.
        if "ScheduledTaskManager" not in text:
            run(text.replace("app_of_scheduling.tasks.remind", "tests.project.tasks.echo"))
    assert set(ScheduledTask.objects.values_list("task_name", flat=True)) == {
        *("app_of_scheduling.tasks.refresh_prices", "nightly report", "monthly", "remind 42")
    }
    assert MessageLog.objects.get().task == "tests.project.tasks.echo"
    assert capsys.readouterr().out == ""


@pytest.mark.django_db
def test_statistics_and_retention() -> None:
    for page in ("statistics.md", "retention.md"):
        for text in blocks(DOCS / page, "python"):
            if "CARROT" not in text:
                run(text)
    assert MessageLog.objects.get().task == "carrot_twisted.helper_tasks.cleanup"


@pytest.mark.django_db
def test_a_receiver_of_signals(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = blocks(DOCS / "reference.md", "python")
    receiver = run(text)["count"]
    try:
        with in_memory() as carrot:
            publish_message(tasks.echo)
            carrot.run_pending()
    finally:
        signals.task_finished.disconnect(receiver)
    told = capsys.readouterr().out.split()
    assert told[:4] == ["tests.project.tasks.echo", "default", "1", "COMPLETED"]
    assert float(told[4]) >= 0


def test_consumer_classes() -> None:
    names: dict[str, Any] = {}
    for text in blocks(DOCS / "consumers.md", "python"):
        # Those are settings, and a program with a broker.
        if "CARROT" not in text and "ConsumerSet" not in text:
            text = text.replace("myapp.tasks import order_paid", "tests.project.tasks import echo")
            names |= run(f"from carrot_twisted.consumer import Consumer\n{text}")
    classes = [one for one in names.values() if isinstance(one, type) and issubclass(one, Consumer)]
    assert {one.__name__ for one in classes} == {
        *("Consumer", "MyConsumer", "CustomConsumer", "Orders", "Guard")
    }
    assert run(next(blocks(DOCS / "monitor.md", "python")))["urlpatterns"]


@pytest.mark.django_db
def test_rows_of_callbacks(capsys: pytest.CaptureFixture[str]) -> None:
    """The block of callbacks.md that finds them."""
    (text,) = (one for one in blocks(DOCS / "callbacks.md", "python") if "objects.filter" in one)
    MessageLog.objects.create(
        **{"task": "saving.Saver", "queue": "orders", "routing_key": "shop.order.paid"},
        **{"status": "FAILED", "failure_time": timezone.now(), "exception": "Drop: no order"},
        content='{"number": 7}',
    )
    run(text)
    assert capsys.readouterr().out.endswith('orders shop.order.paid Drop: no order {"number": 7}\n')


def test_a_queue_that_takes_over_messages_of_django_carrot(settings: Any) -> None:
    (text,) = (
        one
        for one in blocks(DOCS / "migrating-from-django-carrot.md", "python")
        if "AdoptingConsumer" in one
    )
    settings.CARROT = {**settings.CARROT, "queues": [eval(text)]}  # noqa: S307 - it is ours
    assert conf.problems() == ()
    (queue,) = conf.current().queues.values()
    assert ConsumerSet.get_consumer_class(queue.consumer_class) is AdoptingConsumer
