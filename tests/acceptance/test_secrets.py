# SPDX-License-Identifier: Apache-2.0
"""The broker's password is shown nowhere, whatever goes wrong.

Beside these tests, every test that starts a service fails if its log, or a row, shows it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.utilities import publish_message
from devtools.ports import free_port
from tests.conftest import rows_show, run_python
from tests.integration.test_health import Watcher
from tests.integration.test_service import run
from tests.processes import REPOSITORY, ServiceProcess, secrets_of, spawn, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from devtools.servers import RabbitMQ
    from tests.processes import Launch

pytestmark = pytest.mark.once

StartService = Callable[..., ServiceProcess]
#: The beginning is looked for: pieces would be a secret, too.
SECRET = "s3cr3t"
PASSWORD = f"{SECRET}/:@%{SECRET}"
EXAMINE = "from carrot_twisted import doctor\nprint(*doctor.examine('default'), sep='\\n')"


@pytest.fixture
def launch() -> Launch:
    """The process's own command line is looked at."""
    return spawn


@pytest.fixture(scope="module")
def hard_url(private_broker: RabbitMQ) -> str:
    """URL of a user whose password is hard to write."""
    with suppress(Exception):
        private_broker.ctl("delete_user", "hard")
    private_broker.ctl("add_user", "hard", PASSWORD)
    private_broker.ctl("set_permissions", "-p", private_broker.name, "hard", ".*", ".*", ".*")
    rest = private_broker.url.partition("@")[2]
    return f"amqp://hard:{quote(PASSWORD, safe='')}@{rest}"


def test_nothing_that_the_service_says_or_writes_shows_the_password(
    start_service: StartService, hard_url: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        service = start_service(
            "--loglevel=debug", CARROT_BROKER_URL=hard_url, NOTIFY_SOCKET=str(tmp_path / "notify")
        )
        supervisor.setblocking(False)
        notices: list[str] = []

        def hears(text: str) -> bool:
            with suppress(BlockingIOError):
                while True:
                    notices.append(supervisor.recv(4096).decode())
            return any(text in notice for notice in notices)

        wait_until(lambda: hears("READY=1"))
        told = run(publish_message(tasks.tell_all))
        assert told.status == MessageLog.FAILED
        assert "ProbableAccessDeniedError" in (told.exception or "")
        assert "amqp://hard@" in (told.log or "")
        command_line = Path(f"/proc/{service.process.pid}/cmdline").read_text()
        assert SECRET not in command_line
        assert Worker.objects.exists()
        assert not rows_show([SECRET])
        assert service.stop() == 0
        assert hears("STOPPING=1")
    assert SECRET not in "".join(notices)
    assert SECRET not in service.log
    assert "amqp://hard@" in service.log
    assert [secret for secret in secrets_of(hard_url) if SECRET not in secret] == []


def test_no_failed_connection_shows_the_password(
    start_service: StartService, hard_url: str
) -> None:
    port = free_port()
    at = hard_url.index("@")
    urls = {
        f"{hard_url}-no": "does it exist",
        hard_url.replace("hard:", "hard:no"): "is refused",
        hard_url.replace("amqp://", "amqps://"): "No connection",
        f"{hard_url[:at]}@127.0.0.1:{port}/x": "ConnectionRefusedError",
    }
    options = ("--loglevel=debug", "--log-format=json", "--http=tcp:0:interface=127.0.0.1")
    services = {url: start_service(*options, wait=False, CARROT_BROKER_URL=url) for url in urls}
    for url, service in services.items():
        service.wait_for(urls[url])
        watcher = Watcher(service)
        assert "no connection to" in str(watcher.reasons())
        assert SECRET not in watcher.get("/ready")[1] + watcher.get("/metrics")[1]
        service.signal()
    for service in services.values():
        assert service.ends() == 0
        assert SECRET not in service.log
    # Also what this process, a publisher, says of the same brokers.
    publish = "from carrot_twisted.utilities import publish_message\npublish_message('os.getpid')"
    for url in urls:
        assert SECRET not in program(f"import django\ndjango.setup()\n{publish}", url)
        found = program(f"import django\ndjango.setup()\n{EXAMINE}", url)
        assert "No connection to the broker" in found
        assert SECRET not in found
    assert MessageLog.objects.exclude(publish_error="").exists()
    assert not rows_show([SECRET])


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://hard:{PASSWORD}@localhost/",
        f"http://hard:{quote(PASSWORD, safe='')}@localhost/",
        f"amqp://hard:{SECRET}@local host:{SECRET}/",
    ],
)
def test_no_mistake_in_the_settings_shows_the_password(
    start_service: StartService, url: str
) -> None:
    service = start_service(wait=False, CARROT_BROKER_URL=url)
    checked = program("from django.core.management import *\nexecute_from_command_line()", url)
    assert service.ends() == 78
    for text in (service.log, checked):
        assert "carrot_twisted.E003" in text
        assert SECRET not in text


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (f'HOST = VirtualHost("amqp://hard:{PASSWORD}@h/v", vhost=1)', "TypeError"),
        ('CARROT["queues"][0]["consumer_class"] = "mistaken_consumer.Mine"', "NameError"),
    ],
    ids=["settings", "consumer"],
)
def test_no_traceback_of_the_projects_own_code_shows_it(
    start_service: StartService, tmp_path: Path, lines: str, told: str
) -> None:
    """A traceback shows lines of code, and a URL may stand in one."""
    (tmp_path / "mistaken.py").write_text(
        "from carrot_twisted.virtual_host import VirtualHost\n"
        f"from tests.settings import *\n{lines}\n"
    )
    (tmp_path / "mistaken_consumer.py").write_text(
        "from carrot_twisted.consumer import Consumer\n\n\nclass Mine(Consumer):\n"
        f'    def __init__(self, *_, **__):\n        no_such("amqp://hard:{PASSWORD}@h/v")\n'
    )
    service = start_service(
        "--settings=mistaken", wait=False, PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}"
    )
    assert service.ends() == 78
    assert told in service.log
    assert "amqp://hard:***@h/v" in service.log
    assert SECRET not in service.log


def program(text: str, url: str) -> str:
    """Run Python in the tests' project; what it prints. Its argument is "check"."""
    return run_python(text, url, "check").stdout
