# SPDX-License-Identifier: Apache-2.0
"""The units for systemd: it understands them, and what they start speaks to it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sysconfig
import time
from configparser import ConfigParser
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from carrot_twisted import conf
from carrot_twisted.service.engine import CONFIRMS
from carrot_twisted.service.log_writer import LAST_WRITES
from carrot_twisted.service.process_end import EXIT_CONFIG, EXIT_RECYCLE, LAST_MOMENT
from carrot_twisted.service.protocol import FAREWELL
from carrot_twisted.utilities import publish_message
from tests.conftest import missing, same_servers
from tests.processes import REPOSITORY, wait_until
from tests.project import misbehaving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Broker

pytestmark = pytest.mark.once

UNITS = sorted((REPOSITORY / "systemd").iterdir())
PAGE = (REPOSITORY / "docs" / "systemd.md").read_text()
VARIABLE = re.compile(r"\$\{?([A-Z_]+)\}?")
#: Seconds that the test's systemd waits for a sign.
PERIOD = 0.4


def service_of(unit: Path) -> dict[str, str]:
    """The unit's section [Service]."""
    parser = ConfigParser(interpolation=None, delimiters=["="])
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return dict(parser["Service"])


def environment_file(name: str) -> dict[str, str]:
    """A file in /etc/carrot, as the page has it."""
    (block,) = re.findall(rf"^# /etc/carrot/{name}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def words(command: str, environment: dict[str, str]) -> list[str]:
    """A command line as systemd reads it: ``$A`` alone becomes words, ``${A}`` a part of one."""
    result: list[str] = []
    for word in command.split():
        if alone := re.fullmatch(r"\$([A-Z_]+)", word):
            result += environment.get(alone[1], "").split()
        else:
            result.append(VARIABLE.sub(lambda found: environment.get(found[1], ""), word))
    return result


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: str(path.name))
class TestAUnit:
    def test_is_understood_by_systemd(self, unit: Path) -> None:
        program = shutil.which("systemd-analyze") or missing("there is no systemd-analyze")
        done = subprocess.run(
            [program, "verify", "--man=no", str(unit)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # Units of this machine may have faults of their own.
        told = [line for line in done.stderr.splitlines() if "carrot" in line]
        assert (done.returncode, told) == (0, [])

    def test_gives_a_stop_its_time_and_knows_the_statuses(self, unit: Path) -> None:
        service = service_of(unit)
        longest = conf.DEFAULTS["shutdown_timeout"] + 2 * LAST_WRITES + CONFIRMS + FAREWELL
        assert float(service["TimeoutStopSec"]) > longest + LAST_MOMENT
        assert service["RestartPreventExitStatus"] == str(EXIT_CONFIG)
        # Status 0 is a stop that somebody wanted, perhaps by the database: it is the end.
        assert service["Restart"] == "on-failure"
        if "callback" not in unit.name:
            assert service["SuccessExitStatus"] == str(EXIT_RECYCLE)
            assert service["RestartForceExitStatus"] == str(EXIT_RECYCLE)

    def test_uses_what_the_page_tells_to_write(self, unit: Path) -> None:
        name = "orders.env" if "callback" in unit.name else "shop.env"
        used = set(VARIABLE.findall(service_of(unit)["ExecStart"]))
        assert used <= set(environment_file(name))
        assert "PATH" in environment_file(name)


class Systemd:
    """Its side of a service's start: the socket, and what came by it."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.address)
        self.socket.settimeout(30)

    def next(self) -> str:
        """The next message."""
        return self.socket.recv(4096).decode()

    def wait_for(self, word: str) -> str:
        """The next message that has this word."""
        told = self.next()
        while word not in told.split("\n"):
            told = self.next()
        return told

    def signs_for(self, seconds: float) -> int:
        """How many signs of life come in the next seconds; those that wait already do not count."""
        end = time.monotonic() + seconds
        self.socket.setblocking(False)
        try:
            while True:
                self.socket.recv(4096)
        except BlockingIOError:
            self.socket.settimeout(30)
        signs = 0
        while time.monotonic() < end:
            signs += self.next() == "WATCHDOG=1"
        return signs


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    one = Systemd(tmp_path)
    yield one
    one.socket.close()


@contextmanager
def started(
    unit: str, systemd: Systemd, folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """What the unit starts, as systemd does it, with this environment beside systemd's own.

    Inside the block it is ready.
    """
    environment = {
        **environment,
        "CARROT_FOLDER": str(REPOSITORY),
        "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "CARROT_TEST_LEDGER": str(folder / "ledger"),
    }
    command = words(service_of(REPOSITORY / "systemd" / unit)["ExecStart"], environment)
    environment |= {
        "NOTIFY_SOCKET": systemd.address,
        "WATCHDOG_USEC": str(int(PERIOD * 1e6)),
    }
    with (folder / "log").open("wb") as stream:
        service = subprocess.Popen(
            command, cwd="/", env=environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        systemd.wait_for("READY=1")
        yield service
    finally:
        service.kill()
        service.wait()


def test_what_the_unit_starts_is_ready_gives_signs_of_life_and_stops(
    served: None,
    systemd: Systemd,
    broker_url: str,
    tmp_path: Path,
    ledger: Any,
) -> None:
    environment = {**environment_file("shop.env"), **same_servers(broker_url)}
    with started("carrot@.service", systemd, tmp_path, environment) as service:
        assert systemd.signs_for(4 * PERIOD) >= 4
        # Nobody else can speak while a task holds Python itself.
        publish_message(misbehaving.hold_gil, 2000, urlsplit(broker_url).port or 5672)
        wait_until(lambda: "holds" in ledger())
        # Of 15 in three seconds.
        assert 1 <= systemd.signs_for(3) <= 8
        service.terminate()
        systemd.wait_for("STOPPING=1")
        assert service.wait(30) == 0
    assert "Consuming queue other" in (tmp_path / "log").read_text()


def test_so_does_what_the_callbacks_unit_starts_with_the_pages_options(
    served: None,
    systemd: Systemd,
    broker_url: str,
    broker: Broker,
    tmp_path: Path,
    ledger: Any,
) -> None:
    environment = {
        **environment_file("orders.env"),
        **same_servers(broker_url),
        "CARROT_CALLBACK": "tests.project.callbacks:obey",
    }
    broker.channel.exchange_declare("shop.events", "topic")
    try:
        with started("carrot-callback@.service", systemd, tmp_path, environment) as service:
            assert systemd.signs_for(2 * PERIOD) >= 2
            broker.channel.basic_publish("shop.events", "order.paid", b"wait")
            wait_until(lambda: ledger() == ["begin wait"])
            service.terminate()
            assert "Stopping; 1 callbacks are still running" in systemd.wait_for("STOPPING=1")
            (tmp_path / "ledger.go").touch()
            assert service.wait(30) == 0
    finally:
        broker.channel.queue_delete("shop.orders")
        broker.channel.exchange_delete("shop.events")
    assert ledger() == ["begin wait", "end wait"]
