# SPDX-License-Identifier: Apache-2.0
"""docs/tutorial.md works as it stands there, block after block, from an empty folder.

Left out is only what makes a virtual environment: the tests' own is used, and the package that is
installed in it. A block with `sh` is run; one that begins with a file's name becomes that file, or
its end; `twistd` is started, the running one stopped before.
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

    def wait_for(self, question: str) -> None:
        """A moment later: until the database answers this with something else than 0."""

        def answer() -> int:
            with closing(sqlite3.connect(self.folder / "db.sqlite3")) as connection:
                return int(connection.execute(f"SELECT {question}").fetchone()[0])

        wait_until(answer, what=question)


@pytest.fixture
def reader(tmp_path: Path, broker_url: str) -> Iterator[Reader]:
    delete_queues(broker_url)
    reader = Reader(tmp_path, broker_url)
    yield reader
    for service in reader.services:
        service.kill()
    delete_queues(broker_url)


#: What the page says that a block prints, by words in the block; and when it does.
TASK = "COUNT(*) FROM carrot_twisted_messagelog WHERE task = 'letters.tasks.{}' AND status = '{}'"
PRINTED = {
    "print(join(": ("1", ["PUBLISHED"]),
    'task="letters.tasks.welcome")\nprint': (
        TASK.format("welcome", "COMPLETED"),
        ["COMPLETED sent 1", "wrote to ada@example.com"],
    ),
    "carrot_status": ("1", ["No problems"]),
    "print(log.status, log.retries": (
        TASK.format("import_friends", "PUBLISHED") + " AND retries > 0",
        ["PUBLISHED", "No such file"],
    ),
    "print(log.status, log.output, log.progress": (
        TASK.format("import_friends", "COMPLETED"),
        ["COMPLETED 2 friends", "'done': 2"],
    ),
    "without a letter": (
        "NOT COUNT(*) FROM letters_subscriber WHERE welcomed_at IS NULL",
        ["0 without a letter"],
    ),
}


def test_a_newcomer_gets_from_an_empty_folder_to_the_end(reader: Reader) -> None:
    left = dict(PRINTED)
    for language, text in BLOCKS:
        if language == "python":
            reader.write(text)
        elif text == TWISTD:
            reader.start()
        elif language == "sh":
            lines = text.splitlines(keepends=True)
            commands = "".join(line for line in lines if not line.startswith(NOT_HERE))
            part = next((part for part in left if part in commands), "")
            question, expected = left.pop(part, ("1", []))
            if part:
                reader.wait_for(question)
            printed = reader.shell(commands)
            assert [one for one in expected if one not in printed] == [], printed
    assert not left
    assert len(list((reader.folder / "mails").iterdir())) == 3, "one letter for each"
    shown = reader.shell(
        "python manage.py shell -v0 -c '"
        "from django.test import Client\n"
        'client = Client(SERVER_NAME="localhost")\n'
        'print(client.login(username="ada", password="letters"))\n'
        'print(client.get("/carrot/").status_code)'
        "'"
    )
    assert "True\n200" in shown
    reader.stop()
