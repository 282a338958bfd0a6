# SPDX-License-Identifier: Apache-2.0
"""Whose files they are, whom the code runs as, and that one pid file means one service."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import (
    REPOSITORY,
    TWISTD,
    ServiceProcess,
    python_for_others,
    run_to_end,
    spawn,
    wait_until,
)

if TYPE_CHECKING:
    from tests.processes import Launch

pytestmark = pytest.mark.once

StartService = Callable[..., ServiceProcess]
USER = "nobody"
#: The tasks of a project; on import they tell whom they are imported as.
TASKS = """
import os
with open("imported", "a") as file:
    file.write(f"{os.getuid()} {os.geteuid()} {os.getgroups()}\\n")
"""
SETTINGS = """
from tests.settings import *
CARROT = {**CARROT, "task_modules": ["told"]}
"""


@pytest.fixture
def launch() -> Launch:
    """Processes as an administrator starts them."""
    return spawn


def owner(path: Path) -> str:
    return pwd.getpwuid(path.lstat().st_uid).pw_name


@pytest.fixture
def place() -> Iterator[Path]:
    """A project in a folder of that user's."""
    folder = Path(tempfile.mkdtemp(prefix="carrot-test-"))
    user = pwd.getpwnam(USER)
    (folder / "told.py").write_text(TASKS)
    (folder / "mine.py").write_text(SETTINGS)
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    yield folder
    shutil.rmtree(folder)


def environment(folder: Path, broker_url: str) -> dict[str, str]:
    return {
        "PYTHONPATH": f"{REPOSITORY}:{sysconfig.get_path('purelib')}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DJANGO_SETTINGS_MODULE": "mine",
        "CARROT_BROKER_URL": broker_url,
        "CARROT_DATABASE_URL": f"sqlite://{folder / 'database'}",
    }


def make_tables(folder: Path) -> None:
    """Make the project's database, as that user."""
    user = pwd.getpwnam(USER)
    program = (
        "import django; django.setup();"
        "from django.core.management import call_command; call_command('migrate', verbosity=0)"
    )
    subprocess.run(
        [str(python_for_others()), "-c", program],
        cwd=folder,
        env={**os.environ, **environment(folder, "")},
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        check=True,
    )


def twistd(folder: Path, broker_url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Start the service as a daemon, for that user."""
    return run_to_end(
        [
            str(python_for_others()),
            str(TWISTD),
            f"--uid={USER}",
            "--pidfile=pid",
            "--logfile=log",
            *options,
            "carrot",
        ],
        environment(folder, broker_url),
        cwd=folder,
    )


@pytest.fixture
def daemons(place: Path) -> Iterator[None]:
    """No daemon outlives the test."""
    yield
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        os.kill(int((place / "pid").read_text()), signal.SIGKILL)


@pytest.mark.only("root")
def test_roots_daemon_for_another_user_leaves_nothing_of_roots(
    place: Path, daemons: None, broker_url: str
) -> None:
    make_tables(place)
    done = twistd(place, broker_url)
    assert done.returncode == 0, done.stdout
    log, pid_file, user = place / "log", place / "pid", pwd.getpwnam(USER)
    wait_until(lambda: "Consuming queue default" in log.read_text(), 30, log.read_text())
    # The project's code was imported when root was gone, and with it root's groups.
    assert (place / "imported").read_text() == (
        f"{user.pw_uid} {user.pw_uid} {os.getgrouplist(USER, user.pw_gid)}\n"
    )
    pid = int(pid_file.read_text())
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{user.pw_uid}\t{user.pw_uid}\t{user.pw_uid}\t{user.pw_uid}" in status
    assert f"Gid:\t{user.pw_gid}\t{user.pw_gid}\t{user.pw_gid}\t{user.pw_gid}" in status
    assert (owner(log), owner(pid_file)) == (USER, USER)
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: (place / "log.1").exists(), 10)
    again = twistd(place, broker_url)
    assert (again.returncode, f"carrot runs already, as process {pid}" in again.stdout) == (1, True)

    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pid_file.exists(), 15)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 15)
    assert {owner(path) for path in place.iterdir()} == {USER}
    assert "Traceback" not in log.read_text() + (place / "log.1").read_text()


@pytest.mark.only("root")
@pytest.mark.parametrize("trap", ["log", "pid"])
def test_a_link_that_the_user_laid_leads_root_nowhere(
    place: Path, daemons: None, broker_url: str, trap: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("1\n")
    (place / trap).symlink_to(victim)
    done = twistd(place, broker_url)
    assert done.returncode == 1
    assert {"log": "log file", "pid": "pid file"}[trap] in done.stdout
    assert f"as user {pwd.getpwnam(USER).pw_uid}" in done.stdout
    assert victim.read_text() == "1\n"
    assert not (place / "imported").exists()


def test_of_twenty_starts_at_once_over_a_stale_pid_file_one_wins(
    start_service: StartService, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    # A number that has a living process: it proves nothing.
    pid_file.write_text(f"{os.getpid()}\n")
    services = [start_service(wait=False, pid_file=pid_file) for _ in range(20)]

    def running() -> list[ServiceProcess]:
        return [service for service in services if service.process.poll() is None]

    wait_until(lambda: len(running()) == 1, 60, "one runs")
    (winner,) = running()
    winner.wait_for("Consuming queue default")
    assert pid_file.read_text() == f"{winner.process.pid}\n"
    for service in services:
        if service is not winner:
            assert "carrot runs already, as process" in service.log
            assert "carrot starts" not in service.log
            assert service.ends() == 1
    assert winner.stop() == 0
    assert not pid_file.exists()
