# SPDX-License-Identifier: Apache-2.0
"""What the guides for other peers' projects tell to copy works as it stands there.

That for django-carrot has a test of its own, with a whole project.
"""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pika
import pytest

from tests.acceptance.test_readme import Site
from tests.conftest import Broker
from tests.processes import REPOSITORY, ServiceProcess, spawn, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = REPOSITORY / "docs"
BROKER = "amqp://guest:guest@localhost:5672/"

pytestmark = pytest.mark.once


def blocks(page: str) -> dict[str, str]:
    """Python blocks, by the file that their first line names."""
    found = re.findall(
        r"```python\n(# ([^\n]+)\n.*?)```", (DOCS / page).read_text(), flags=re.DOTALL
    )
    return {str(name): str(text) for text, name in found}


@pytest.fixture
def no_queues(broker_url: str) -> Iterator[None]:
    """None is left of another test, or for one."""

    def delete() -> None:
        broker = Broker(broker_url)
        for queue in ("shop.paid", "shop.orders"):
            for suffix in ("", ".archived", ".retry.200ms", ".retry.1000ms"):
                broker.channel.queue_delete(f"{queue}{suffix}")
        broker.channel.exchange_delete("data")
        broker.connection.close()

    delete()
    yield
    delete()


def test_a_consumer_and_a_publisher_of_fedora_messaging(
    tmp_path: Path, broker_url: str, broker: Broker, no_queues: None
) -> None:
    files = blocks("migrating-from-fedora-messaging.md")
    for name in ("new_consumer.py", "new_publisher.py"):
        (tmp_path / name).write_text(files[name])
    start: Any = partial(
        subprocess.Popen,
        cwd=tmp_path,
        env={"PYTHONPATH": str(REPOSITORY), "CARROT_BROKER": broker_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    consumer = start([sys.executable, "new_consumer.py"])
    try:
        wait_until(lambda: broker.depth("shop.paid", -1) >= 0)
        publisher = start([sys.executable, "new_publisher.py"])
        told, _ = publisher.communicate(timeout=20)
        assert publisher.returncode == 0, told
        assert "paid: 9 shop.order.paid\n" in iter(consumer.stdout.readline, "")
        consumer.terminate()
        assert consumer.wait(20) == 0
    finally:
        consumer.kill()
        consumer.communicate()
    # Only what moves has changed.
    old, new = files["before: old_consumer.py"], files["new_consumer.py"]
    assert old.partition("api.consume(")[2] == new.partition("carrot_twisted.consume(")[2]


def test_a_handler_of_celery_message_consumer(
    tmp_path: Path, broker_url: str, broker: Broker, no_queues: None, served: None
) -> None:
    files = blocks("migrating-from-celery-message-consumer.md")
    old, new = files["before: shop/consumers.py"], files["shop/handlers.py"]
    decorated = new.partition("@message_handler")[2].replace(", flush=True", "")
    assert old.partition("@message_handler")[2] == decorated
    site = Site(tmp_path, broker_url)
    (site.folder / "shop").mkdir()
    (site.folder / "shop" / "__init__.py").touch()
    (site.folder / "shop" / "handlers.py").write_text(new)
    settings = site.folder / "mysite" / "settings.py"
    mine = files["settings.py"].replace(BROKER, broker_url).replace('"carrot_twisted", ', "")
    settings.write_text(f"{settings.read_text()}\n{mine}")
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
        service.wait_for("Consuming queue shop.orders ")
        for body in (b'{"number": 7}', b"{}"):
            broker.channel.basic_publish(
                "data", "order.new", body, pika.BasicProperties(content_type="application/json")
            )
        service.wait_for("order 7")
        wait_until(lambda: broker.depth("shop.orders.archived") == 1)
        assert service.stop() == 0
    finally:
        service.kill()


def test_settings_that_stay_where_they_are_mean_the_same(tmp_path: Path) -> None:
    files = blocks("migrating-from-celery-message-consumer.md")
    program = (
        "from django.conf import settings\n"
        f"{files['settings.py, before']}\n"
        "ours = {name: value for name, value in globals().items() if name.startswith('EVENT_')}\n"
        "settings.configure(INSTALLED_APPS=['carrot_twisted'], USE_TZ=True, **ours)\n"
        "from carrot_twisted import conf\n"
        "one = conf.handlers()\n"
        "print(one.max_retries, one.exchanges['data'].name, one.exchanges['data'].type)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "2 data topic\n", done.stderr
