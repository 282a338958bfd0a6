# SPDX-License-Identifier: Apache-2.0
"""Real servers for the tests: started on first use, private, gone at the end.

``CARROT_BROKER_URL`` and ``CARROT_DATABASE_URL`` name existing ones instead. Which database the
tests use is told by ``CARROT_TEST_DATABASE``: ``sqlite`` (the default) or ``postgres``. A server
that is not installed skips its tests at a developer's desk, and fails them where ``CI`` is set.

``CARROT_TEST_RABBITMQ`` names the root of another Debian system, whose RabbitMQ is used instead of
this machine's; ``CARROT_TEST_QUEUE_TYPE`` is ``classic`` (the default) or ``quorum``. For all
combinations there is ``run.py brokers``.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pika
import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connections, transaction
from django.db.migrations.recorder import MigrationRecorder
from django.test import TransactionTestCase
from pika.exceptions import ChannelClosedByBroker

from carrot_twisted import publisher
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.virtual_host import VirtualHost
from devtools.rabbitmq import version_of
from devtools.server import Startable
from devtools.servers import PostgreSQL, RabbitMQ, ServerError, temporary_folder
from tests.nursery import Nursery
from tests.processes import (
    REPOSITORY,
    ServiceProcess,
    python_for_others,
    run_to_end,
    secrets_of,
)
from tests.settings import CARROT, QUEUE_TYPE, database

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Collection, Iterator

    from tests.processes import Launch

QUEUES = ["default", "other"]
#: So many dead rows of one test would slow down the next one.
MANY_ROWS = 500

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in the background of a shell: all that the tests start would ignore it, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def kind_of_database() -> str:
    """The kind of database of this run."""
    return os.environ.get("CARROT_TEST_DATABASE", "sqlite")


def root_of_rabbitmq() -> Path | None:
    """The system whose RabbitMQ this run uses; None: this machine's."""
    given = os.environ.get("CARROT_TEST_RABBITMQ")
    return Path(given) if given else None


def versions_of_rabbitmq() -> set[str]:
    """Names for markers, such as rabbitmq4 and rabbitmq4.3."""
    major, _, rest = (version_of(root_of_rabbitmq() or Path("/")) or "").partition(".")
    return {f"rabbitmq{major}", f"rabbitmq{major}.{rest.partition('.')[0]}"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what makes sense with another database, type of queue or RabbitMQ only."""
    present = {kind_of_database(), QUEUE_TYPE, *versions_of_rabbitmq()}
    if may_change_user():
        present.add("root")
    others = [
        item
        for item in items
        if any(only.args[0] not in present for only in item.iter_markers("only"))
    ]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


def may_change_user() -> bool:
    """Whether this is root, and another user could run the code that is here."""
    places = [REPOSITORY, *REPOSITORY.parents]
    open_to_all = all(place.stat().st_mode & stat.S_IXOTH for place in places)
    return os.geteuid() == 0 and open_to_all and python_for_others() is not None


def missing(error: object) -> NoReturn:
    """Something is not installed here: skip at a developer's desk, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"In CI every server must be there: {error}")
    pytest.skip(str(error))


ServerType = TypeVar("ServerType", bound=Startable)


@contextmanager
def running(server: ServerType) -> Iterator[ServerType]:
    """A server that runs inside the block; one that cannot is missing."""
    with ExitStack() as stack:
        try:
            stack.enter_context(server)
        except ServerError as error:
            missing(error)
        yield server


@pytest.fixture(scope="session")
def private_broker() -> Iterator[RabbitMQ]:
    """A RabbitMQ that the test may stop, kill and freeze."""
    with (
        temporary_folder() as folder,
        running(RabbitMQ(folder / "rabbitmq", root=root_of_rabbitmq())) as server,
    ):
        yield server


@pytest.fixture
def strict_broker() -> Iterator[RabbitMQ]:
    """A RabbitMQ 4 that permits no transient queues and waits 10 seconds for acknowledgements."""
    configuration = (
        "deprecated_features.permit.transient_nonexcl_queues = false\nconsumer_timeout = 10000\n"
    )
    with (
        temporary_folder() as folder,
        RabbitMQ(folder / "rabbitmq", configuration=configuration, root=root_of_rabbitmq()) as node,
    ):
        yield node


@pytest.fixture(scope="session")
def broker_url(request: pytest.FixtureRequest) -> str:
    """URL of a running RabbitMQ."""
    given = os.environ.get("CARROT_BROKER_URL")
    return given or str(request.getfixturevalue("private_broker").url)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A PostgreSQL that the test may stop, also as a crash would.

    Whatever is committed has been handed to the operating system, which outlives every test: that
    it is on the disk, too, is nothing to wait for.
    """
    settings = {"fsync": "off", "full_page_writes": "off"}
    with (
        temporary_folder() as folder,
        running(PostgreSQL(folder / "postgres", settings=settings)) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the database that the test run uses, before "test_" is put before its name."""
    if kind_of_database() == "sqlite":
        return f"sqlite://{tmp_path_factory.mktemp('sqlite') / 'carrot.sqlite3'}"
    given = os.environ.get("CARROT_DATABASE_URL")
    return given or str(request.getfixturevalue("postgres").url)


@pytest.fixture(scope="session")
def django_db_modify_db_settings(database_url: str) -> None:
    """pytest-django's hook: point Django at the chosen database before it makes the test tables."""
    django_settings.DATABASES["default"] = database(database_url)
    connections.settings = connections.configure_settings(django_settings.DATABASES)
    del connections["default"]


@pytest.fixture(scope="session", autouse=True)
def quick_emptying() -> Iterator[None]:
    """After a test that commits, its rows are deleted, and nothing else is done.

    Django truncates each table, which makes new files, and then makes the content types and
    permissions again that it has deleted.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", delete_rows)
        yield


def delete_rows(_case: TransactionTestCase) -> None:
    """Empty the tables of the tests' database, but for what migrating has put there."""
    connection = connections["default"]
    migrated = (ContentType, Permission, MigrationRecorder.Migration)
    kept = {model._meta.db_table for model in migrated}
    names = connection.introspection.django_table_names(only_existing=True, include_views=False)
    tables = [connection.ops.quote_name(name) for name in names if name not in kept]
    many = []
    # Foreign keys are looked at when the transaction ends.
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # As truncating does: a session that is being ended may not add a row behind us.
            cursor.execute(f"LOCK TABLE {', '.join(tables)}")
        for table in tables:
            cursor.execute(f"DELETE FROM {table}")  # noqa: S608 - Django's own tables
            if cursor.rowcount > MANY_ROWS:
                many.append(table)
    if many and connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # What is deleted is still read over by whoever looks for rows.
            cursor.execute(f"VACUUM {', '.join(many)}")


@pytest.fixture
def served(
    settings: Any,
    broker_url: str,
    transactional_db: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Database and broker, empty; this process publishes to that broker."""
    settings.CARROT = {**CARROT, "default_broker": broker_url}
    monkeypatch.setenv("CARROT_TEST_LEDGER", str(tmp_path / "ledger"))
    delete_queues(broker_url)
    yield
    connections.close_all()
    assert not rows_show(secrets_of(broker_url)), "a row shows the broker's password"
    leaving = publisher.install(None)
    if isinstance(leaving, publisher.ThreadPublisher):
        leaving.close(5)
    connections.close_all()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts services in a fraction of the time."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def launch(nursery: Nursery) -> Launch:
    """How services are started; modules that look at the process itself override it."""
    return nursery.start


@pytest.fixture
def start_service(
    served: None, broker_url: str, tmp_path: Path, launch: Launch
) -> Iterator[Callable[..., ServiceProcess]]:
    """Start ``twistd carrot`` as a process of its own; every one is ended with the test."""
    running: list[ServiceProcess] = []

    def start(
        *options: str, wait: bool = True, pid_file: Path | None = None, **environment: str
    ) -> ServiceProcess:
        service = ServiceProcess(
            tmp_path / f"service-{len(running)}",
            options,
            {
                **same_servers(broker_url),
                "CARROT_TEST_LEDGER": str(tmp_path / "ledger"),
                **environment,
            },
            pid_file=pid_file,
            launch=launch,
        )
        running.append(service)
        if wait:
            service.wait_for("Consuming queue default")
        return service

    yield start
    for service in running:
        service.kill()
    for service in running:
        shown = [secret for secret in service.secrets if secret in service.log]
        assert not shown, f"the service's log shows {shown}"


def rows_show(secrets: Collection[str]) -> bool:
    """Whether one of the newest rows holds one of these texts."""
    rows = [*MessageLog.objects.order_by("-pk")[:500].values(), *Worker.objects.values()]
    told = repr(rows)
    return any(secret in told for secret in secrets)


def current_database_url() -> str:
    """URL of the tests' own database, for other processes."""
    given = connections["default"].settings_dict
    if given["ENGINE"].endswith("sqlite3"):
        return f"sqlite://{given['NAME']}"
    return (
        f"postgres://{given['USER']}:{given['PASSWORD']}@{given['HOST']}:{given['PORT']}"
        f"/{given['NAME']}"
    )


def same_servers(broker_url: str) -> dict[str, str]:
    """The environment of another process with this broker, and the tests' own database."""
    return {"CARROT_BROKER_URL": broker_url, "CARROT_DATABASE_URL": current_database_url()}


def run_python(
    program: str, broker_url: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code in the tests' project, with the same servers; see ``run_to_end``."""
    return run_to_end(
        [sys.executable, "-c", program, *arguments],
        {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            **same_servers(broker_url),
            **environment,
        },
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[[], list[str]]:
    """Read the lines that tasks left in the ledger."""

    def read() -> list[str]:
        path = tmp_path / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    return read


def delete_queues(url: str) -> None:
    """Delete the tests' queues and exchanges."""
    connection = pika.BlockingConnection(VirtualHost(url).parameters())
    channel = connection.channel()
    for name in QUEUES:
        for queue in (name, f"{name}.dead"):
            channel.queue_delete(queue)
        channel.exchange_delete(name)
    connection.close()


class Broker:
    """A plain AMQP client for the tests: looks and sends past the product."""

    def __init__(self, url: str) -> None:
        self.connection = VirtualHost(url).blocking_connection
        self.channel = self.connection.channel()

    def depth(self, queue: str, missing: int | None = None) -> int:
        """Ready messages of a queue; ``missing`` if there is no such queue."""
        try:
            frame = self.channel.queue_declare(queue, passive=True)
        except ChannelClosedByBroker:
            if missing is None:
                raise
            self.channel = self.connection.channel()
            return missing
        return int(frame.method.message_count)

    def get(self, queue: str) -> tuple[Any, bytes]:
        """Properties and body of the next message, taken off the queue."""
        method, properties, body = self.channel.basic_get(queue, auto_ack=True)
        assert method is not None, f"queue {queue} is empty"
        return properties, body

    def send(self, queue: str, body: bytes, **properties: Any) -> None:
        """Publish to a queue."""
        self.channel.basic_publish("", queue, body, pika.BasicProperties(**properties))


@pytest.fixture
def broker(broker_url: str) -> Iterator[Broker]:
    """An AMQP client on the tests' broker."""
    client = Broker(broker_url)
    yield client
    if client.connection.is_open:
        client.connection.close()
