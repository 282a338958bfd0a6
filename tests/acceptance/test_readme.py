# SPDX-License-Identifier: Apache-2.0
"""What the README tells a newcomer to copy works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.processes import REPOSITORY, ServiceProcess, spawn, wait_until

if TYPE_CHECKING:
    from pathlib import Path

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
SETTINGS = (REPOSITORY / "docs" / "settings.md").read_text()
(DATABASES,) = re.findall(r"```python\n(# settings\.py\nDATABASES .*?)```", SETTINGS, re.DOTALL)
PYTHON_BLOCKS = [text for language, text in BLOCKS if language == "python"]
SHELL_BLOCKS = [text for language, text in BLOCKS if not language]

pytestmark = pytest.mark.once


def block(beginning: str) -> str:
    """The README's code block that begins with this line."""
    return next(str(text) for text in PYTHON_BLOCKS if text.startswith(beginning))


class Site:
    """A new Django project, made as the README says."""

    def __init__(self, folder: Path, broker_url: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)
        self.run("-m", "django", "startproject", "mysite", str(folder))
        (folder / "myapp").mkdir()
        (folder / "myapp" / "__init__.py").touch()
        (folder / "myapp" / "tasks.py").write_text(block("# myapp/tasks.py"))
        settings = folder / "mysite" / "settings.py"
        mine = block("# settings.py").replace("INSTALLED_APPS = [", "INSTALLED_APPS += [")
        mine = mine.replace("amqp://guest:guest@localhost:5672/", broker_url)
        settings.write_text(f"{settings.read_text()}\n{mine}\n{DATABASES}")

    def run(self, *arguments: str) -> str:
        """Run Python with these arguments; its output."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def site(tmp_path: Path, broker_url: str, served: None) -> Site:
    return Site(tmp_path, broker_url)


def test_a_newcomer_gets_from_the_readme_to_a_result(site: Site) -> None:
    commands = "\n".join(SHELL_BLOCKS)
    assert "python manage.py migrate\npython manage.py check\n" in commands
    assert "twistd -n carrot --settings=mysite.settings\n" in commands
    # Django refuses to make tables while a module of tasks is missing.
    order = (
        "# myapp/tasks.py",
        "# settings.py",
        "manage.py migrate",
        "twistd -n carrot --settings",
    )
    assert sorted(order, key=README.index) == list(order)
    (site.folder / "mysite" / "urls.py").write_text(block("# urls.py"))
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
        service.wait_for("Consuming queue default")
        publish = block("from carrot_twisted.utilities import publish_message")
        look = block("log.refresh_from_db()")
        many = block("from carrot_twisted.utilities import create_message")
        wait = (
            "import time\nwhile log.status in log.UNFINISHED:\n"
            "    time.sleep(0.05); log.refresh_from_db()\n"
        )
        ask = (
            "from django.test import Client\n"
            "print(Client(SERVER_NAME='localhost').get('/carrot/').status_code, 'of the monitor')\n"
        )
        output = site.run("manage.py", "shell", "-c", f"{publish}\n{wait}\n{look}\n{ask}")
        assert "COMPLETED hello Ada hello Ada" in output
        assert "greeting Ada" in output
        assert "302 of the monitor" in output, "nobody has logged in"
        count = (
            "from carrot_twisted.models import MessageLog\n"
            "print(MessageLog.objects.filter(status='COMPLETED').count())"
        )
        names = "from myapp.tasks import greet\nnames = [str(n) for n in range(20)]"
        site.run("manage.py", "shell", "-c", f"{names}\n{many}")
        wait_until(lambda: site.run("manage.py", "shell", "-c", count).split()[-1] == "21")
        assert service.stop() == 0
    finally:
        service.kill()


def test_the_readme_begins_with_its_two_commands() -> None:
    first = README.split("```")[1]
    assert "python3 run.py example" in first
    assert "python3 run.py test" in first
    assert "python3 run.py test" in (REPOSITORY / ".ci" / "run").read_text()
