# SPDX-License-Identifier: Apache-2.0
"""docs/tutorial.md works as it stands there, block after block, from an empty folder.

Left out is only what makes a virtual environment: the tests' own is used, and the package that is
installed in it. A block with `sh` is run; one that begins with a file's name becomes that file, or
its end; `twistd` is started, the running one stopped before.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import delete_queues
from tests.processes import REPOSITORY, ServiceProcess, spawn, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (REPOSITORY / "docs" / "tutorial.md").read_text()
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
TWISTD = "twistd -n carrot --settings=mysite.settings\n"
BROKER = "amqp://guest:guest@localhost:5672/"
NOT_HERE = ("python3 -m venv", ". .venv", "pip install")

pytestmark = pytest.mark.once


class Reader:
    """Does what the page says."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.top = folder
        self.folder = folder / "newsletter"
        self.broker_url = broker_url
        self.services: list[ServiceProcess] = []
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{self.folder}{os.pathsep}{REPOSITORY}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)

    def shell(self, commands: str, seconds: float = 90.0) -> str:
        """Run commands in the folder; what they print."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder if self.folder.exists() else self.top,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, text: str) -> None:
        """Make the file that the first line names, or add to it."""
        name, comma, _ = text.partition("\n")[0].removeprefix("# ").partition(",")
        text = text.replace(BROKER, self.broker_url)
        path = self.folder / name
        path.write_text(f"{path.read_text()}\n{text}" if comma else text)

    def start(self) -> None:
        """Start the service, in the place of the one that runs."""
        self.stop()
        service = ServiceProcess(
            self.top / f"service-{len(self.services)}",
            (),
            self.environment,
            "mysite.settings",
            launch=partial(spawn, cwd=self.folder),
        )
        self.services.append(service)
        service.wait_for("Consuming queue default with 4 threads")

    def stop(self) -> None:
        """Ctrl-C."""
        for service in self.services[-1:]:
            assert service.stop() == 0

    def look(self, commands: str, *expected: str) -> None:
        """What the page says is printed, a moment later."""
        printed: list[str] = []

        def there() -> bool:
            printed[:] = [self.shell(commands)]
            return all(text in printed[0] for text in expected)

        wait_until(there, 30, f"{expected} printed by {commands}", every=0.2)


@pytest.fixture
def reader(tmp_path: Path, broker_url: str) -> Iterator[Reader]:
    delete_queues(broker_url)
    reader = Reader(tmp_path, broker_url)
    yield reader
    for service in reader.services:
        service.kill()
    delete_queues(broker_url)


def test_a_newcomer_gets_from_an_empty_folder_to_the_end(reader: Reader) -> None:
    #: By words in a block: what the page says that it prints.
    prints = {
        "print(join(": ("PUBLISHED",),
        'task="letters.tasks.welcome")\nprint': ("COMPLETED sent 1", "wrote to ada@example.com"),
        "carrot_status": ("No problems",),
        "print(log.status, log.retries": ("PUBLISHED", "No such file"),
        "print(log.status, log.output, log.progress": ("COMPLETED 2 friends", "'done': 2"),
        "without a letter": ("0 without a letter",),
    }
    for language, text in BLOCKS:
        if language == "python":
            reader.write(text)
        elif text == TWISTD:
            reader.start()
        elif language == "sh":
            commands = "".join(
                line for line in text.splitlines(True) if not line.startswith(NOT_HERE)
            )
            expected = [prints.pop(part) for part in list(prints) if part in commands]
            if expected:
                reader.look(commands, *expected[0])
            else:
                reader.shell(commands)
    assert not prints
    assert len(list((reader.folder / "mails").iterdir())) == 3, "one letter for each"
    shown = reader.shell(
        "python manage.py shell -v0 -c '"
        "from django.test import Client\n"
        'client = Client(SERVER_NAME="localhost")\n'
        'print(client.login(username="ada", password="letters"), client.get("/carrot/").status_code)'
        "'"
    )
    assert "True 200" in shown
    reader.stop()
