# SPDX-License-Identifier: Apache-2.0
"""An upgrade without a pause: two versions of services and publishers share queues and tables.

The older version is a commit of this repository, built as a wheel and installed into an environment
of its own. The order is that of docs/deployment.md: migrate, then replace services one by one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pika
import psycopg
import pytest

from carrot_twisted.service.process_end import EXIT_CONFIG
from carrot_twisted.virtual_host import VirtualHost
from tests.acceptance.test_package import TWISTD, Environment, succeed
from tests.processes import REPOSITORY, ServiceProcess, run_to_end, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# What another database would show besides, that old code may leave out new columns, a unit test of
# the migrations shows.
pytestmark = pytest.mark.only("postgres")

#: The last commit whose tables were those of migration 0008. Once there is a release, this is the
#: tag of the last one.
OLDER = "28a49c1caf595d70f8ce56c220792e9c79936f62"
PROJECT = REPOSITORY / "tests" / "rolling"
QUEUE = "rolling"
#: What publish.py publishes at once, and how many tasks that hold on.
BATCH, HOLDING = 20, 4


def exported(folder: Path) -> Path:
    """The sources of the older version."""
    git = ["git", "-c", f"safe.directory={REPOSITORY}", "-C", str(REPOSITORY)]
    if (
        shutil.which("git") is None
        or subprocess.run(
            [*git, "cat-file", "-e", f"{OLDER}^{{commit}}"], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("the older version is not here: this is no clone, or a shallow one, or no git")
    archive = subprocess.run([*git, "archive", OLDER], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Python of an environment with the older version's wheel."""
    sources, wheels, home = (tmp_path / name for name in ("sources", "wheels", "older"))
    for folder in (sources, wheels, home):
        folder.mkdir()
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels)
    succeed(*build, exported(sources), folder=wheels)
    environment = Environment(home)
    environment.install(*wheels.glob("*.whl"))
    environment.borrow_dependencies()
    assert environment.where_is_the_package().is_relative_to(home)
    return environment.python


@dataclass
class Database:
    """A database for both versions, read past either."""

    url: str

    def rows(self, columns: str = "status, count(*)", rest: str = "GROUP BY status") -> list[Any]:
        """Of the messages."""
        query = f"SELECT {columns} FROM carrot_twisted_messagelog {rest}"  # noqa: S608
        with psycopg.connect(self.url) as connection:
            return connection.execute(query.encode()).fetchall()


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty one."""
    server = database_url.replace("postgres://", "postgresql://", 1)
    url = urlsplit(server)._replace(path="/carrot_rolling").geturl()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS carrot_rolling WITH (FORCE)")
        connection.execute("CREATE DATABASE carrot_rolling")
        yield Database(url)
        connection.execute("DROP DATABASE carrot_rolling WITH (FORCE)")


@dataclass
class Side:
    """One of the two versions, with the project."""

    name: str
    python: Path
    environment: Mapping[str, str]
    folder: Path

    def __post_init__(self) -> None:
        self.environment = {
            **self.environment,
            "ROLLING_SIDE": self.name,
            "ROLLING_FOLDER": str(self.folder),
            "DJANGO_SETTINGS_MODULE": "depot.settings",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *arguments: str) -> None:
        """Run a module."""
        command = [str(self.python), "-m", *arguments]
        done = run_to_end(command, self.environment, cwd=PROJECT)
        assert done.returncode == 0, done.stdout

    def publish(self, name: str, kind: str = "batch") -> None:
        """Publish tasks that are called so."""
        self.run("depot.publish", name, kind)

    def begin(self, name: str) -> ServiceProcess:
        """Start a service."""
        folder = self.folder / f"{self.name}-{name}"
        return ServiceProcess(folder, (), {}, settings="depot.settings", launch=self._launch)

    def _launch(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> subprocess.Popen[bytes]:
        with log.open("ab") as stream:
            return subprocess.Popen(
                [str(self.python), "-c", TWISTD, *command],
                cwd=PROJECT,
                env={**os.environ, **self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )


@pytest.fixture
def broker(broker_url: str) -> Iterator[str]:
    """URL of a broker that does not have the queue."""

    def clean() -> None:
        connection = pika.BlockingConnection(VirtualHost(broker_url).parameters())
        for queue in (QUEUE, f"{QUEUE}.dead"):
            connection.channel().queue_delete(queue)
        connection.channel().exchange_delete(QUEUE)
        connection.close()

    clean()
    yield broker_url
    clean()


class Story:
    """Both versions, and what has happened."""

    def __init__(self, folder: Path, older: Path, database: Database, broker: str) -> None:
        servers = {"ROLLING_DATABASE": database.url, "ROLLING_BROKER": broker}
        self.older = Side("older", older, servers, folder)
        self.newer = Side("newer", Path(sys.executable), servers, folder)
        self.database = database
        self._folder = folder
        self.published: list[str] = []
        self.held: list[str] = []

    def batch(self, side: Side) -> None:
        """One publishes a batch; all of that comes to its end."""
        name = f"{side.name}{len(self.published)}"
        rest = [str(number) for number in range(BATCH)]
        self.published += [f"{name}-{key}" for key in ("alone", "failing", "together", *rest)]
        side.publish(name)
        self.all_is_final()

    def all_is_final(self) -> None:
        """Wait for it; but for ticks."""
        rest = "WHERE status IN ('PUBLISHED', 'IN_PROGRESS') AND task <> 'depot.tasks.tick'"
        wait_until(lambda: not self.database.rows("uuid", rest), what="all is final", every=0.1)

    def lose(self, dying: ServiceProcess, publisher: Side) -> None:
        """Both services run tasks that hold on, and one is killed."""
        go = self._folder / "go"
        go.unlink(missing_ok=True)
        name = f"held{len(self.held)}"
        self.held += [f"{name}-{number}" for number in range(HOLDING)]
        publisher.publish(name, "hold")
        running = "WHERE status = 'IN_PROGRESS' AND task = 'depot.tasks.hold'"
        # One thread each.
        wait_until(lambda: len(self.database.rows("DISTINCT worker", running)) == 2)
        dying.kill()
        go.touch()
        self.all_is_final()

    def traces(self) -> Counter[tuple[str, str]]:
        """How often which version has run what."""
        lines = (self._folder / "traces").read_text().splitlines()
        return Counter((key, side) for key, _, side in (line.partition(" ") for line in lines))


def test_two_versions_share_queues_and_tables(
    tmp_path: Path, older: Path, database: Database, broker: str
) -> None:
    story = Story(tmp_path, older, database, broker)
    services: list[ServiceProcess] = []

    def start(side: Side, name: str) -> ServiceProcess:
        service = side.begin(name)
        services.append(service)
        service.wait_for(f"Consuming queue {QUEUE}")
        return service

    try:
        story.older.run("django", "migrate", "--verbosity=0")
        begin = time.monotonic()
        old = start(story.older, "first")
        story.batch(story.older)
        # Services cannot come first.
        hasty = story.newer.begin("hasty")
        services.append(hasty)
        assert hasty.ends() == EXIT_CONFIG
        assert "Run: python manage.py migrate" in hasty.log
        # First the tables: the old service works on, and old code publishes.
        story.newer.run("django", "migrate", "--verbosity=0")
        story.batch(story.older)
        # Then services, one by one: each version runs what the other one publishes.
        new = start(story.newer, "first")
        story.batch(story.newer)
        # Each takes over what the other one leaves behind.
        story.lose(new, publisher=story.older)
        new = start(story.newer, "second")
        story.lose(old, publisher=story.newer)
        # Those who publish come last.
        story.batch(story.older)
        assert new.stop() == 0
        seconds = time.monotonic() - begin
    finally:
        for service in services:
            service.kill()
    traces = story.traces()
    times: Counter[str] = Counter()
    for (key, _), count in traces.items():
        times[key] += count
    assert {side for _, side in traces} == {"older", "newer"}
    # Each task once; what was killed had not come to its trace.
    ticks = times.pop("tick")
    assert times == Counter([*story.published, *story.held])
    # The schedule was published once a second, however many services there were.
    assert 3 <= ticks <= seconds + 1
    rest = "WHERE task <> 'depot.tasks.tick' GROUP BY task, status"
    failing = sum(key.endswith("-failing") for key in story.published)
    assert sorted(database.rows("task, status, count(*), max(crashes)", rest)) == [
        ("depot.tasks.fail", "FAILED", failing, 0),
        # Each version has noted what was lost with the other one.
        ("depot.tasks.hold", "COMPLETED", len(story.held), 1),
        ("depot.tasks.trace", "COMPLETED", len(story.published) - failing, 0),
    ]
    lost = "WHERE crashes = 1 GROUP BY worker"
    assert len(database.rows("worker", lost)) == 2
    ticked = dict(database.rows(rest="WHERE task = 'depot.tasks.tick' GROUP BY status"))
    assert set(ticked) <= {"COMPLETED", "PUBLISHED"}
