# SPDX-License-Identifier: Apache-2.0
"""What docs/handlers.md tells to copy works as it stands there, and its tables are the code's."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import pytest
from django.core.management import load_command_class

from carrot_twisted import copies, handler_settings
from tests.acceptance.test_readme import Site
from tests.conftest import Broker
from tests.processes import REPOSITORY, ServiceProcess, spawn, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = (REPOSITORY / "docs" / "handlers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
BROKER = "amqp://guest:guest@localhost:5672/"
QUEUES = (
    *("orders.paid", "orders.raw", "orders.both", "orders.cancelled", "myapp.orders"),
    *("orders.refunded", "customer.new", "customer.gone"),
)
DELAYS = (200, 1000, 60_000, 1_800_000)

pytestmark = pytest.mark.once


def block(text: str) -> str:
    """The page's code block that holds a text."""
    return next(str(one) for one in BLOCKS if text in one)


@pytest.fixture
def no_queues(broker_url: str) -> Iterator[None]:
    """None is left of another test, or for one."""

    def delete() -> None:
        broker = Broker(broker_url)
        for queue in QUEUES:
            for suffix in ("", ".archived", *(f".retry.{n}ms" for n in DELAYS)):
                broker.channel.queue_delete(f"{queue}{suffix}")
        broker.channel.exchange_delete("shop.events")
        broker.connection.close()

    delete()
    yield
    delete()


def test_a_newcomer_gets_from_the_page_to_a_handled_message(
    tmp_path: Path, broker_url: str, served: None, no_queues: None, broker: Broker
) -> None:
    site = Site(tmp_path, broker_url)
    handlers = "\n".join(one for one in BLOCKS if "@message_handler" in one)
    (site.folder / "myapp" / "handlers.py").write_text(handlers)
    with (site.folder / "mysite" / "settings.py").open("a") as settings:
        settings.write(block("# settings.py").replace(BROKER, broker_url))
        settings.write("INSTALLED_APPS.append('myapp')\n")
    (site.folder / "send.py").write_text(block("# send.py").replace(BROKER, broker_url))
    site.run("manage.py", "migrate")
    site.run("manage.py", "check", "--fail-level", "WARNING")

    service = ServiceProcess(
        site.folder / "run",
        (),
        {**site.environment},
        settings="mysite.settings",
        launch=partial(spawn, cwd=site.folder),
    )
    try:
        for queue in QUEUES:
            service.wait_for(f"Consuming queue {queue} ")
        site.run("send.py")
        service.wait_for("order 7 is paid")
        broker.send(
            "orders.paid.archived",
            b'{"number": 8}',
            content_type="application/json",
            headers={"x-retry-count": 4},
        )
        site.run("manage.py", "carrot_archive", "replay", "--queue=orders.paid")
        service.wait_for("order 8 is paid")
        broker.send("orders.cancelled", b"{}", content_type="application/json")
        wait_until(lambda: broker.depth("orders.cancelled.archived") == 1)
        assert service.stop() == 0
        told = site.run("manage.py", "shell", "-c", block("if not row.is_task"))
        assert "PermanentFailure: an order has a number {}" in told
    finally:
        service.kill()


def test_its_tables_have_every_setting_and_every_header() -> None:
    for key in handler_settings.DEFAULTS:
        assert f"`{key}`" in PAGE, key
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) \|", PAGE, flags=re.MULTILINE))
    for key in ("max_retries", "archive_expiry", "archive_max_length", "concurrency"):
        assert int(rows[key]) == handler_settings.DEFAULTS[key]
    headers = {value for name, value in vars(copies).items() if name.endswith("_HEADER")}
    assert len(headers) == 11
    for header in headers:
        assert f"`{header}`" in PAGE, header


def test_its_commands_are_understood() -> None:
    parser = load_command_class("carrot_twisted", "carrot_archive").create_parser("manage.py", "")
    lines = re.findall(r"^python manage\.py carrot_archive (.*)$", PAGE, flags=re.MULTILINE)
    assert {parser.parse_args(line.split()).action for line in lines} == {
        *("list", "show", "replay", "delete")
    }
