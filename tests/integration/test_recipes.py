# SPDX-License-Identifier: Apache-2.0
"""What docs/deployment.md has users run: an image with its settings, commands for the broker."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from carrot_twisted.virtual_host import VirtualHost
from devtools.ports import free_port
from tests.conftest import current_database_url
from tests.pages import blocks
from tests.processes import wait_until
from tests.shell_script import commands
from tests.unit.test_recipes import PAGE, instruction

if TYPE_CHECKING:
    from pathlib import Path

    from devtools.servers import RabbitMQ


@pytest.mark.once
def test_a_project_gets_a_virtual_host_of_its_own_by_the_commands_of_the_page(
    private_broker: RabbitMQ,
) -> None:
    (script,) = (one for one in blocks(PAGE, "") if "rabbitmqctl" in one)
    for program, *words in commands(script.replace("…", "secret")):
        assert program == "rabbitmqctl"
        private_broker.ctl(*words)
    parts = urlsplit(private_broker.url)
    host = VirtualHost(f"amqp://shop:secret@{parts.hostname}:{parts.port}/shop")
    connection = host.blocking_connection
    connection.channel().queue_declare("default")
    connection.close()


@pytest.mark.only("postgres")
@pytest.mark.usefixtures("served")
def test_the_images_command_is_healthy_becomes_ready_and_ends_on_sigterm(
    tmp_path: Path, broker_url: str
) -> None:
    parts = re.findall(
        r"^```python\n(# shop/settings.py\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "settings.py").write_text("\n".join(parts))
    (tmp_path / "shop" / "tasks.py").touch()
    environment = {
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin",
        "DJANGO_SETTINGS_MODULE": "shop.settings",
        "DATABASE_URL": current_database_url(),
        "BROKER_URL": broker_url,
        "SECRET_KEY": "tests only",
    }
    port = str(free_port())
    command, health = (
        [word.replace("9090", port) for word in instruction(name)]
        for name in ("CMD", "HEALTHCHECK")
    )

    def healthy() -> bool:
        done = subprocess.run(health, env=environment, cwd=tmp_path, check=False)
        return done.returncode == 0

    def ready() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except URLError:
            return False

    assert not healthy()
    with (tmp_path / "log").open("wb") as log:
        service = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        wait_until(ready, every=0.1)
        assert healthy()
        service.terminate()
        assert service.wait(30) == 0
    finally:
        service.kill()
        service.wait()
    assert {path.name for path in tmp_path.iterdir()} == {"log", "shop"}, "nothing is left behind"
