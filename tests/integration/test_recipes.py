# SPDX-License-Identifier: Apache-2.0
"""What an image runs, in a project with the settings of docs/deployment.md."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from devtools.ports import free_port
from tests.conftest import current_database_url
from tests.processes import wait_until
from tests.unit.test_recipes import PAGE, instruction

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.only("postgres")


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
