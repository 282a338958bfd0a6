# SPDX-License-Identifier: Apache-2.0
"""The units for systemd: it understands them, and what they start speaks to it."""

from __future__ import annotations

import json
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
from urllib.request import urlopen

import pytest

from carrot_twisted import conf
from carrot_twisted.service.engine import CONFIRMS
from carrot_twisted.service.log_writer import LAST_WRITES
from carrot_twisted.service.process_end import EXIT_CONFIG, EXIT_RECYCLE, LAST_MOMENT
from carrot_twisted.service.protocol import FAREWELL
from carrot_twisted.service.workers import STOP_MARGIN
from carrot_twisted.service_options import Options
from carrot_twisted.utilities import publish_message
from devtools.ports import free_port
from tests.conftest import missing, same_servers
from tests.pages import DOCS, blocks
from tests.processes import REPOSITORY, TWISTD, wait_until
from tests.project import misbehaving
from tests.shell_script import commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Broker

pytestmark = pytest.mark.once

UNITS = sorted((REPOSITORY / "systemd").iterdir())
PAGE = (REPOSITORY / "docs" / "systemd.md").read_text()
#: The unit of docs/callbacks.md, which belongs to no Django project.
(OWN,) = blocks(DOCS / "callbacks.md", "ini")
#: What docs/systemd.md and docs/security.md add to a unit.
ADDED = [
    text
    for page in ("systemd.md", "security.md")
    for text in blocks(DOCS / page, "ini")
    if text.startswith("[Service]")
]
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


def verified(unit: Path) -> list[str]:
    """What systemd does not understand in a unit of ours, and in what is added to it."""
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
    assert told or done.returncode == 0, done.stderr
    return told


def longest_stop() -> float:
    """Seconds that a process needs to stop by itself, at most."""
    running = conf.DEFAULTS["shutdown_timeout"]
    return float(running + 2 * LAST_WRITES + CONFIRMS + FAREWELL + LAST_MOMENT)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: str(path.name))
class TestAUnit:
    def test_is_understood_by_systemd(self, unit: Path) -> None:
        assert verified(unit) == []

    def test_gives_a_stop_its_time_and_knows_the_statuses(self, unit: Path) -> None:
        service = service_of(unit)
        # With --workers: they are killed so many seconds after that, at the latest.
        assert float(service["TimeoutStopSec"]) > longest_stop() + STOP_MARGIN
        assert service["RestartPreventExitStatus"] == str(EXIT_CONFIG)
        # Status 0 is a stop that somebody wanted, perhaps by the database: it is the end.
        assert service["Restart"] == "on-failure"
        if "callback" not in unit.name:
            assert service["SuccessExitStatus"] == str(EXIT_RECYCLE)
            assert service["RestartForceExitStatus"] == str(EXIT_RECYCLE)

    def test_uses_what_the_page_tells_to_write(self, unit: Path) -> None:
        name = "orders.env" if "callback" in unit.name else "shop.env"
        used = set(VARIABLE.findall(service_of(unit)["ExecStart"]))
        others = {"PATH", "DJANGO_SETTINGS_MODULE"}
        assert used <= set(environment_file(name)) <= used | others
        assert "PATH" in environment_file(name)


class TestTheDocumentation:
    def test_what_it_adds_to_a_unit_is_understood(self, tmp_path: Path) -> None:
        unit = tmp_path / "carrot@.service"
        unit.write_text((REPOSITORY / "systemd" / unit.name).read_text())
        folder = tmp_path / f"{unit.name}.d"
        folder.mkdir()
        for number, text in enumerate(ADDED):
            (folder / f"{number}.conf").write_text(text)
        assert verified(unit) == []
        (folder / "mistake.conf").write_text(ADDED[1].replace("[Service]", ""))
        assert "Assignment outside of section" in "".join(verified(unit)), "they are read"

    def test_its_unit_for_a_callback_is_understood_and_gives_a_stop_its_time(
        self, tmp_path: Path
    ) -> None:
        unit = tmp_path / "carrot-callback.service"
        unit.write_text(OWN.replace("/srv/saver/venv/bin/twistd", str(TWISTD)))
        assert verified(unit) == []
        service = service_of(unit)
        assert float(service["TimeoutStopSec"]) > longest_stop()
        assert service["RestartPreventExitStatus"] == str(EXIT_CONFIG)
        assert service["KillMode"] == "mixed"
        options = Options()
        options.parseOptions(service["ExecStart"].partition(" carrot ")[2].split())
        assert (options["callback"], options["queue-name"]) == ("saving:Saver", "orders")

    def test_its_commands_link_and_enable_the_units(self, tmp_path: Path) -> None:
        """Systemd does that in another root as well, though it starts nothing there."""
        systemctl = shutil.which("systemctl") or missing("there is no systemctl")
        for place in ("usr/lib/systemd/system", "srv/shop/.venv/lib/systemd/system"):
            shutil.copytree(REPOSITORY / "systemd", tmp_path / place)
        lines = [line for text in blocks(DOCS / "systemd.md", "") for line in commands(text)]
        users = {service_of(unit)["User"] for unit in UNITS}
        for program, *arguments in lines:
            match program, arguments:
                case "systemctl", ["status", unit]:
                    assert unit == "carrot@shop"
                case "systemctl", _:
                    left = [word for word in arguments if word != "--now"]
                    subprocess.run([systemctl, f"--root={tmp_path}", *left], check=True)
                case "useradd", [*_, user]:
                    assert users == {user}
                case "chmod", ["600", path]:
                    assert f"# {path}\n" in PAGE
                case "journalctl", ["-u", unit, "-f"]:
                    assert unit == "carrot@shop"
                case _:
                    pytest.fail(f"{program} {arguments}")
        etc = tmp_path / "etc/systemd/system"
        linked = {str(one.relative_to(etc)) for one in etc.rglob("*") if one.is_symlink()}
        assert linked >= {
            "carrot@.service",
            "multi-user.target.wants/carrot@shop.service",
            "multi-user.target.wants/carrot-callback@orders.service",
        }


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


def test_with_workers_and_metrics_the_unit_is_ready_when_all_of_them_are(
    served: None, systemd: Systemd, broker_url: str, tmp_path: Path
) -> None:
    """Each has a port: docs/systemd.md has the options."""
    (options,) = re.findall(r"`(--http=tcp:9090[^`]*)`", PAGE)
    port = free_port()
    environment = {
        **environment_file("shop.env"),
        **same_servers(broker_url),
        "CARROT_OPTIONS": f"--workers=2 {options.replace('9090', str(port))}",
    }
    with started("carrot@.service", systemd, tmp_path, environment) as service:
        names = set()
        for one in (port, port + 1):
            with urlopen(f"http://127.0.0.1:{one}/ready?format=json", timeout=10) as answer:
                names.add(json.load(answer)["worker"])
        assert len(names) == 2
        assert systemd.signs_for(2 * PERIOD) >= 2
        service.terminate()
        systemd.wait_for("STOPPING=1")
        assert service.wait(30) == 0


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
