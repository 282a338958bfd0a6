# SPDX-License-Identifier: Apache-2.0
"""The guide takes a project that was written for django-carrot to the new service.

The project stands in tests/django_carrot/project, as text: it imports what is not installed here.
What is run on it are the guide's own blocks.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.virtual_host import VirtualHost
from tests.conftest import Broker, delete_queues
from tests.django_carrot import publisher
from tests.processes import REPOSITORY, ServiceProcess, spawn, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

GUIDE = (REPOSITORY / "docs" / "migrating-from-django-carrot.md").read_text()
STEPS: list[str] = re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL)
PROJECT = REPOSITORY / "tests" / "django_carrot" / "project"

#: What the old project leaves: run with the tests' settings, which have no app of that name.
LEAVE_BEHIND = """
import django; django.setup()
from tests.django_carrot import tables
tables.create()
tables.add_schedule("orders.tasks.sweep", task_name="sweep", task_args="'yard', 1, [2, 3]")
tables.add_schedule("orders.tasks.sweep", task_name="rest", active=False)
print(tables.add_log("orders.tasks.pack", 1, content='{"gift": true}'))
tables.add_log("orders.tasks.pack", 2, status="IN_PROGRESS")
tables.add_log("orders.tasks.pack", 104, status="FAILED", exception="no paper")
"""

pytestmark = pytest.mark.once


def step(beginning: str) -> str:
    """The guide's block that begins with this."""
    found = [text for text in STEPS if text.startswith(beginning)]
    assert len(found) == 1, f"one block of the guide begins with {beginning!r}"
    return found[0]


class Shop:
    """The project, with a database and a broker."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.folder = folder / "project"
        for source in sorted(PROJECT.rglob("*-tpl")):
            target = self.folder / source.relative_to(PROJECT).with_suffix(".py")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text())
        self.ledger_path = folder / "ledger"
        self.database = folder / "shop.sqlite3"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.folder}{os.pathsep}{REPOSITORY}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "SHOP_BROKER": broker_url,
            "SHOP_DATABASE": str(self.database),
            "SHOP_LEDGER": str(self.ledger_path),
        }
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)

    @property
    def ledger(self) -> list[str]:
        """What its tasks have done."""
        return self.ledger_path.read_text().splitlines() if self.ledger_path.exists() else []

    def shell(self, commands: str, **environment: str) -> str:
        """Run a block of the guide in the project's folder; what it prints."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, program: str, **environment: str) -> str:
        """Run a program; what it prints."""
        return self.shell('python -c "$PROGRAM"', PROGRAM=program, **environment)

    def rows(self) -> list[tuple[str, str]]:
        """Status and positional arguments of each MessageLog that is not a sweep."""
        with closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(
                "SELECT status, task_args FROM carrot_twisted_messagelog "
                "WHERE task <> 'orders.tasks.sweep' ORDER BY publish_time"
            ).fetchall()

    def edit(self, path: str, old: str, new: str) -> None:
        """An edit by hand."""
        file = self.folder / path
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def start(self, name: str) -> ServiceProcess:
        """Start the service by the guide's command."""
        assert step("twistd") == "twistd -n carrot --settings=shop.settings\n"
        service = ServiceProcess(
            self.folder.parent / name,
            (),
            self.environment,
            "shop.settings",
            launch=partial(spawn, cwd=self.folder),
        )
        try:
            service.wait_for("Consuming queue default")
        except BaseException:
            service.kill()
            raise
        return service


@pytest.fixture
def shop(tmp_path: Path, broker_url: str) -> Iterator[Shop]:
    delete_queues(broker_url)
    yield Shop(tmp_path, broker_url)
    delete_queues(broker_url)


def test_a_project_of_django_carrot_moves_by_the_guide(
    shop: Shop, broker_url: str, broker: Broker
) -> None:
    host = VirtualHost(broker_url)
    publisher.declare(host)
    waiting = shop.python(
        LEAVE_BEHIND,
        DJANGO_SETTINGS_MODULE="tests.settings",
        CARROT_DATABASE_URL=f"sqlite://{shop.database}",
    ).strip()
    publisher.send(host, "orders.tasks.pack", 1, message_id=waiting, gift=True)

    # 1. Change the code
    shop.shell(step("grep"))
    left = shop.shell(r"grep -rn '\bcarrot\b' . || true")
    # The logger, and the monitor's address.
    assert sorted(re.findall(r"^\./(\S+?):\d+:\s*(.*)", left, flags=re.MULTILINE)) == [
        ("orders/consumer.py", "logger = logging.getLogger('carrot')"),
        ("orders/tasks.py", "logger = logging.getLogger('carrot')"),
        ("shop/settings.py", "'carrot': {'handlers': ['console'], 'level': 'INFO'},"),
        ("shop/urls.py", "path('carrot/', include('carrot_twisted.urls')),"),
    ]
    assert '"queue_arguments": {"x-max-priority": 255}' in GUIDE
    shop.edit(
        "shop/settings.py",
        "'concurrency': 2,",
        '\'concurrency\': 2, "queue_arguments": {"x-max-priority": 255},',
    )
    shop.shell(step("python manage.py check"))

    # 2. Look at what would come over
    look = shop.shell(step("python manage.py migrate\npython manage.py carrot_import\n"))
    assert "Nothing was changed" in look
    assert shop.rows() == []

    # 3. The move
    moved = shop.shell(step("python manage.py migrate\npython manage.py carrot_import --apply\n"))
    assert re.findall(r"^  (new.*?)  +(\w+)$", moved, flags=re.MULTILINE) == [
        ("new", "sweep"),
        ("new (off)", "rest"),
    ]
    assert shop.rows() == [("PUBLISHED", "[1]")]
    service = shop.start("service")
    try:
        wait_until(lambda: "packed 1 as a gift" in shop.ledger)
        wait_until(lambda: "swept yard (1, [2, 3])" in shop.ledger)
        assert service.log.count("exists with other arguments and is used as it is") == 1
        assert "exchange 'default' exists with other arguments" in service.log
        the_project_works_as_before(shop)
        assert service.stop() == 0
    finally:
        service.kill()
    again = shop.shell("python manage.py carrot_import")
    assert "same       sweep" in again
    assert not re.search(r"^  new", again, flags=re.MULTILINE)
    assert broker.depth("default") == broker.depth("default.dead") == 0

    # 4. Afterwards
    shop.shell(step("python manage.py shell"))
    service = shop.start("later")
    try:
        assert "exists with other arguments" not in service.log
        assert service.stop() == 0
    finally:
        service.kill()


def the_project_works_as_before(shop: Shop) -> None:
    """Its command and its views publish, schedule, requeue; its consumer tries again."""
    shop.shell("python manage.py carrot_import --apply --history")
    shop.shell("python manage.py open_shop")
    answers = shop.shell(
        "python manage.py shell -v0 -c '"
        "from django.test import Client\n"
        'client = Client(SERVER_NAME="localhost")\n'
        'print(client.get("/order/7/?gift").status_code)\n'
        'print(client.get("/open/").content, client.post("/open/").status_code)\n'
        'print(client.get("/carrot/api/message-logs/published/").status_code)\'',
    )
    assert re.search(r"^200\nb'open, \d+ waiting' 405\n302$", answers, flags=re.MULTILINE)
    expected = {"packed 102 as a gift", "packed 103", "packed 104", "packed 7 as a gift"}
    expected |= {"swept hall ()"} | {f"attempt {number}" for number in range(1, 6)}
    wait_until(lambda: expected <= set(shop.ledger))
    done = [("COMPLETED", f"[{number}]") for number in (1, 102, 103, 104, 7)]
    wait_until(lambda: sorted(shop.rows()) == sorted([*done, ("FAILED", "[5]")]), what="all rows")
    assert shop.ledger.count("attempt 5") == 1
