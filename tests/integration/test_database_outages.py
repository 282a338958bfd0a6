# SPDX-License-Identifier: Apache-2.0
"""The database says no, or nothing, while tasks run: a delay, never a loss, never a failure.

On PostgreSQL the service connects as a user of its own, so that the test can shut out the service
alone, and look at its rows all the while.
"""

from __future__ import annotations

import resource
import sqlite3
import threading
import time
from collections import Counter
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest
from django.db import OperationalError, connection, connections, transaction

from carrot_twisted import outbox, publisher, records, statements
from carrot_twisted.identities import new_token
from carrot_twisted.models import MessageLog, Worker
from carrot_twisted.records import Claimant
from carrot_twisted.service.bounded_transactions import BoundedTransactions
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.integration.test_health import HTTP, Watcher
from tests.integration.test_service import finished
from tests.processes import carrot, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from devtools.servers import PostgreSQL
    from tests.processes import ServiceProcess

    StartService = Callable[..., ServiceProcess]
    Ledger = Callable[[], list[str]]

Answer = TypeVar("Answer")

#: Back at work within so many seconds of an outage's end; three or four on a machine at rest.
SECONDS_TO_RETURN = 20.0
TABLE = MessageLog._meta.db_table
LIMITED = "limited"
END_SESSIONS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'limited'"
)
END_OTHERS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


class Limited:
    """A plain user of the tests' PostgreSQL database, for the service under test."""

    def __init__(self, server: PostgreSQL) -> None:
        self.server = server
        self.database = str(connection.settings_dict["NAME"])
        self.url = f"postgres://{LIMITED}:secret@127.0.0.1:{server.port}/{self.database}"
        self.sql(f"DROP OWNED BY {LIMITED}; DROP ROLE {LIMITED}", check=False)
        self.sql(
            f"CREATE ROLE {LIMITED} LOGIN PASSWORD 'secret'; "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {LIMITED}"
        )

    def sql(self, text: str, *, check: bool = True) -> str:
        """As the superuser, past the tests' own connection."""
        if not check:
            text = f"\\unset ON_ERROR_STOP\n{text}"
        return self.server.sql(text, database=self.database)

    def alter(self, what: str) -> None:
        """Change the user; takes effect with its next sessions."""
        self.sql(f"ALTER ROLE {LIMITED} {what}")

    def end_sessions(self) -> None:
        """As an administrator would."""
        self.server.sql(END_SESSIONS, database="postgres")

    def refuse(self, state: str, chance: float = 1.0) -> None:
        """Let what the user writes fail with these SQLSTATEs, parted by spaces."""
        self.sql(
            f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            DECLARE states text[] := string_to_array('{state}', ' ');
            BEGIN
                IF current_user = '{LIMITED}' AND random() < {chance} THEN
                    RAISE 'refused by the test'
                    USING ERRCODE = states[1 + floor(random() * array_length(states, 1))];
                END IF;
                RETURN NULL;
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {TABLE} EXECUTE FUNCTION refuse();
            CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {Worker._meta.db_table}
            EXECUTE FUNCTION refuse()
            """
        )

    def admit(self) -> None:
        """The end of ``refuse``."""
        self.sql("DROP FUNCTION IF EXISTS refuse CASCADE")


@pytest.fixture
def limited(request: pytest.FixtureRequest, served: None) -> Iterator[Limited]:
    user = Limited(request.getfixturevalue("postgres"))
    yield user
    user.admit()


def rename_database(limited: Limited, present: str, new: str) -> None:
    """For that nobody may be connected."""
    connections.close_all()
    steps = [
        f"ALTER DATABASE {present} ALLOW_CONNECTIONS false",
        END_OTHERS,
        f"ALTER DATABASE {present} RENAME TO {new}",
        f"ALTER DATABASE {new} ALLOW_CONNECTIONS true",
    ]
    limited.server.sql(";".join(steps), database="postgres")


def read_only(limited: Limited) -> None:
    """As after a switch to a standby."""
    limited.alter("SET default_transaction_read_only = on")
    limited.end_sessions()


def no_connections(limited: Limited) -> None:
    limited.alter("CONNECTION LIMIT 0")
    limited.end_sessions()


def other_password(limited: Limited) -> None:
    limited.alter("PASSWORD 'changed'")
    limited.end_sessions()


def gone(limited: Limited) -> None:
    rename_database(limited, limited.database, "somewhere_else")


def there_again(limited: Limited) -> None:
    rename_database(limited, "somewhere_else", limited.database)


#: What begins an outage, what ends it, and what the database says in between.
OUTAGES: dict[str, tuple[Callable[[Limited], None], Callable[[Limited], None], str]] = {
    "read-only": (
        read_only,
        lambda user: user.alter("RESET default_transaction_read_only"),
        "read-only transaction",
    ),
    "disk full": (lambda user: user.refuse("53100"), Limited.admit, "refused by the test"),
    "too many connections": (
        no_connections,
        lambda user: user.alter("CONNECTION LIMIT -1"),
        "too many connections",
    ),
    "password changed": (
        other_password,
        lambda user: user.alter("PASSWORD 'secret'"),
        "password authentication failed",
    ),
    "database renamed": (gone, there_again, "does not exist"),
}


class Scenario:
    """Tasks before, in and after an outage, with a running service.

    Args:
        service: of four threads.
        ledger: reads what the tasks leave.
        folder: for a file that they wait for.
    """

    def __init__(self, service: ServiceProcess, ledger: Ledger, folder: Path) -> None:
        self.service = service
        self._ledger = ledger
        self._folder = folder
        self.times = 0

    def through(self, outage: Callable[[], object], end: Callable[[], object]) -> list[MessageLog]:
        """Two tasks that run when it begins end in it. A third one needs the database then.

        Others wait in the queue. Returns the rows of all in the end.
        """
        self.times += 1
        number = self.times
        go = self._folder / f"go {number}"
        first, second, third = (f"{what} {number}" for what in ("first", "second", "third"))
        running = [
            publish_message(tasks.when_told, str(go), first),
            publish_message(tasks.when_told, str(go), second),
            publish_message(tasks.when_told, str(go), third, touch=True),
        ]
        in_progress = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
        wait_until(lambda: in_progress.count() == 3)
        names = [f"{number}.{n}" for n in range(30)]
        waiting = publish_many([create_message(tasks.effect, task_args=[n, 0.03]) for n in names])
        assert publisher.flush(10)
        wait_until(lambda: set(names[:3]) <= set(self._ledger()))
        connections.close_all()
        outage()
        wait_until(lambda: self.service.log.count("The database is away") == number)
        go.touch()
        wait_until(lambda: {first, second, f"no database for {third}"} <= set(self._ledger()))
        end()
        back = time.monotonic()
        done = finished([*running, *waiting])
        assert time.monotonic() - back < SECONDS_TO_RETURN
        assert self.service.log.count("The database is back") == number
        assert {row.status for row in done} == {MessageLog.COMPLETED}
        # What ran on was not run again; what needed the database was; what waited ran once.
        assert [row.attempts for row in done] == [1, 1, 2, *[1] * len(names)]
        assert {row.crashes for row in done} == {0}
        left = [line for line in self._ledger() if line.split(" ")[-1].split(".")[0] == str(number)]
        assert Counter(left) == Counter([first, second, third, f"no database for {third}", *names])
        return done


@pytest.mark.only("postgres")
def test_one_outage_after_another_delays_tasks_and_fails_none(
    limited: Limited, start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    service = start_service(HTTP, CARROT_DATABASE_URL=limited.url)
    scenario = Scenario(service, ledger, tmp_path)
    watcher = Watcher(service)

    def end_it(end: Callable[[Limited], object]) -> None:
        assert "the database is away since" in str(watcher.reasons())
        assert watcher.get("/live")[0] == 200
        assert watcher.number("carrot_database_away") == 1
        end(limited)

    for begin, end, words in OUTAGES.values():
        scenario.through(partial(begin, limited), partial(end_it, end))
        assert words in service.log
        wait_until(watcher.is_ready)
    assert service.stop() == 0
    assert "Traceback" not in service.log
    assert len(service.log.splitlines()) < 25 * len(OUTAGES)


@pytest.mark.only("postgres")
def test_where_only_the_tasks_get_no_connection_they_wait(
    limited: Limited, start_service: StartService, ledger: Ledger
) -> None:
    """The service's own session lasts: it claims and releases, slowly, and says so once."""
    service = start_service(CARROT_DATABASE_URL=limited.url)
    limited.alter("CONNECTION LIMIT 1")
    names = [str(n) for n in range(40)]
    rows = publish_many([create_message(tasks.touch_database, task_args=[n]) for n in names])
    wait_until(lambda: len(ledger()) >= 8)
    service.wait_for("the database was in their way")
    limited.alter("CONNECTION LIMIT -1")
    back = time.monotonic()
    done = finished(rows)
    assert time.monotonic() - back < SECONDS_TO_RETURN
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    effects = Counter(ledger())
    assert {effects[name] for name in names} == {1}
    assert all(row.attempts == 1 + effects[f"no database for {row.positionals[0]}"] for row in done)
    assert service.stop() == 0
    assert "The database is away" not in service.log
    assert "Traceback" not in service.log
    assert len(service.log.splitlines()) < 25


@pytest.mark.only("postgres")
def test_conflicts_of_transactions_pause_nothing(
    limited: Limited, start_service: StartService, ledger: Ledger
) -> None:
    service = start_service(CARROT_DATABASE_URL=limited.url)
    limited.refuse("40P01 40001 55P03", chance=0.3)
    names = [str(n) for n in range(120)]
    rows = publish_many(
        [create_message(tasks.effect, task_args=[n, 0.01]) for n in names[:90]]
        + [create_message(tasks.touch_database, task_args=[n]) for n in names[90:]]
    )
    wait_until(lambda: len(ledger()) > 80)
    limited.admit()
    done = finished(rows)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    effects = Counter(ledger())
    assert {effects[name] for name in names} == {1}
    assert {row.attempts for row in done[:90]} == {1}
    assert service.stop() == 0
    assert "The database is away" not in service.log


@pytest.mark.only("postgres")
def test_a_row_or_a_table_that_somebody_has_locked_holds_up_nothing_else(
    limited: Limited, start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    service = start_service(CARROT_DATABASE_URL=limited.url)
    go = tmp_path / "go"
    held = publish_message(tasks.when_told, str(go), "held")
    wait_until(lambda: MessageLog.objects.filter(status=MessageLog.IN_PROGRESS).exists())
    others = [create_message(tasks.effect, task_args=[str(n)]) for n in range(20)]
    with transaction.atomic():
        MessageLog.objects.select_for_update().get(pk=held.pk)
        go.touch()
        wait_until(lambda: "held" in ledger())
        rows = threaded(lambda: finished(publish_many(others)))
        assert {row.status for row in rows} == {MessageLog.COMPLETED}
        held.refresh_from_db()
        assert held.status == MessageLog.IN_PROGRESS
    finished([held])
    with transaction.atomic(), connection.cursor() as cursor:
        late = publish_message(tasks.effect, "late")
        # The service's statements fail one after another; what is running is none of them.
        cursor.execute(f"LOCK TABLE {TABLE}, {Worker._meta.db_table} IN EXCLUSIVE MODE")
        service.wait_for("The worker renews its lease: others were in its way")
    (done,) = finished([late])
    assert done.attempts == 1
    assert Counter(ledger()) == Counter(["held", "late", *(str(n) for n in range(20))])
    assert service.stop() == 0
    assert "The database is away" not in service.log


def threaded(function: Callable[[], Answer]) -> Answer:
    """Call it in a thread, with a database connection of its own."""
    results: list[Answer] = []

    def call() -> None:
        try:
            results.append(function())
        finally:
            connections.close_all()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(60)
    return results[0]


@pytest.mark.only("postgres")
def test_sessions_that_are_ended_again_and_again_cost_no_task(
    limited: Limited, start_service: StartService, ledger: Ledger
) -> None:
    service = start_service(CARROT_DATABASE_URL=limited.url)
    names = [str(n) for n in range(160)]
    rows = publish_many(
        [create_message(tasks.effect, task_args=[n, 0.02]) for n in names[:120]]
        + [create_message(tasks.touch_database, task_args=[n]) for n in names[120:]]
    )
    for part in range(1, 9):
        wait_until(lambda part=part: len(ledger()) >= 12 * part)  # type: ignore[misc]
        limited.end_sessions()
    done = finished(rows)
    assert {row.status for row in done} == {MessageLog.COMPLETED}
    effects = Counter(ledger())
    assert {effects[name] for name in names} == {1}
    assert {row.crashes for row in done} == {0}
    assert service.stop() == 0
    assert "Traceback" not in service.log


@pytest.mark.only("postgres")
def test_a_commit_whose_answer_is_lost_is_repeated_without_harm(
    limited: Limited, start_service: StartService, ledger: Ledger
) -> None:
    """A commit that waits for a standby is durable; the session is ended before it says so."""
    service = start_service(CARROT_DATABASE_URL=limited.url)
    rows = publish_many([create_message(tasks.effect, task_args=[str(n)]) for n in range(20)])
    limited.sql(
        "ALTER SYSTEM SET synchronous_commit = 'local';"
        "ALTER SYSTEM SET synchronous_standby_names = 'nobody'; SELECT pg_reload_conf()"
    )
    limited.alter("SET synchronous_commit = 'on'")
    try:
        limited.end_sessions()
        rows += publish_many([create_message(tasks.effect, task_args=[str(n)]) for n in (20, 21)])
        ended = MessageLog.objects.filter(status=MessageLog.COMPLETED)
        lost = 0
        while ended.count() < len(rows):
            lost += int(limited.sql(f"{END_SESSIONS} AND wait_event = 'SyncRep'"))
    finally:
        limited.sql(
            "ALTER SYSTEM RESET synchronous_commit; ALTER SYSTEM RESET synchronous_standby_names;"
            "SELECT pg_reload_conf()"
        )
    done = finished(rows)
    assert lost
    assert {(row.status, row.attempts) for row in done} == {(MessageLog.COMPLETED, 1)}
    assert Counter(ledger()) == Counter(str(n) for n in range(22))
    assert service.stop() == 0
    assert "had been taken over" not in service.log


@pytest.mark.only("postgres")
def test_a_database_that_freezes_for_longer_than_a_lease_makes_nobody_look_dead(
    limited: Limited, start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    """Two services, as if on machines of their own: only their heartbeats say that they live."""
    lease = 2.0
    where = {
        "CARROT_DATABASE_URL": limited.url,
        **carrot(lease=lease),
        "CARROT_TEST_ELSEWHERE": "yes",
    }
    services = [start_service(**where), start_service(**where)]
    go = tmp_path / "go"
    rows = [publish_message(tasks.when_told, str(go), f"running {n}") for n in range(4)]
    in_progress = MessageLog.objects.filter(status=MessageLog.IN_PROGRESS)
    wait_until(lambda: in_progress.count() == 4)
    # Both have kept their leases for long enough to judge others.
    with pytest.raises(AssertionError):
        wait_until(lambda: False, lease + 1)
    connections.close_all()
    with limited.server.frozen(), pytest.raises(AssertionError):
        wait_until(lambda: False, lease + 1)
    rows += [publish_message(tasks.effect, str(n)) for n in range(20)]
    wait_until(lambda: len(ledger()) == 20)
    go.touch()
    done = finished(rows)
    assert {(row.status, row.attempts, row.crashes) for row in done} == {
        (MessageLog.COMPLETED, 1, 0)
    }
    assert len(ledger()) == len(set(ledger())) == 24
    for service in services:
        assert service.stop() == 0
        assert "of workers that died" not in service.log
        assert "Traceback" not in service.log


@pytest.mark.only("postgres")
def test_confirms_relays_and_reapers_wait_for_no_row_that_others_hold(served: None) -> None:
    """So there is no deadlock between them and the claims, whatever the order of the rows."""
    token = new_token()
    rows = [create_message(tasks.noop).row for _ in range(4)]
    for row in rows:
        row.token = token
    MessageLog.objects.bulk_create(rows)
    locked, unsent, confirmed, lost = rows
    MessageLog.objects.filter(pk=lost.pk).update(status=MessageLog.IN_PROGRESS, worker="gone")
    reaper = Claimant(worker="me", lease=10.0, max_crashes=5, alone=False, judges=True)

    def others() -> list[MessageLog]:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '2s'")
        statements.confirm_rows(TABLE, [(r.pk, token) for r in (locked, confirmed)], "default")
        outbox.note_errors({str(r.pk): "no" for r in (locked, unsent)}, "default", -10)
        with transaction.atomic():
            assert outbox.ring_again("default", -10, "default") == 1
            assert {r.pk for r in outbox.take_unsent(["default"], 9, "default")} >= {unsent.pk}
            assert records.reap(reaper, "default") == 1
        return list(MessageLog.objects.all())

    with transaction.atomic():
        MessageLog.objects.select_for_update().get(pk=locked.pk)
        assert len(threaded(others)) == 4
    locked.refresh_from_db()
    assert (locked.confirmed_at, locked.publish_error, locked.token) == (None, "", token)


@pytest.mark.only("postgres")
def test_what_a_statement_sets_for_itself_it_has_when_it_locks_and_nothing_has_it_afterwards(
    served: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler gives the connection to others next. And nothing waits for a lock without end."""
    row = create_message(tasks.noop).publish()
    claim = partial(statements.claim_rows, TABLE, [row.pk], 1, "me", 2, "default")

    def shown() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW lock_timeout")
            return str(cursor.fetchone()[0])

    def refused() -> str:
        with (
            pytest.raises(OperationalError, match="lock timeout"),
            BoundedTransactions("default").each(),
        ):
            claim()
        return shown()

    with transaction.atomic():
        MessageLog.objects.select_for_update().get(pk=row.pk)
        assert threaded(refused) == "0"
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {TABLE}")
        assert threaded(refused) == "0"
    with BoundedTransactions("default").each():
        assert shown() == "1s"
        assert len(claim()) == 1
    assert shown() == "0"
    # Where statements cannot be sent together.
    monkeypatch.setattr(connection.features, "uses_server_side_binding", True)
    with BoundedTransactions("default").each():
        assert shown() == "1s"
    assert shown() == "0"


@pytest.mark.only("sqlite")
def test_a_lock_on_the_file_that_outlasts_the_timeout_is_an_outage(
    start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    service = start_service(CARROT_TEST_SQLITE_TIMEOUT="0.2")
    with closing(sqlite3.connect(connection.settings_dict["NAME"], timeout=20)) as other:
        Scenario(service, ledger, tmp_path).through(
            partial(other.execute, "BEGIN IMMEDIATE"), other.rollback
        )
    assert service.stop() == 0
    assert "database is locked" in service.log
    assert "Traceback" not in service.log


@pytest.mark.only("sqlite")
def test_a_disk_that_takes_no_more_is_an_outage(
    start_service: StartService, ledger: Ledger, tmp_path: Path
) -> None:
    """The kernel refuses the service all that would make a file grow beyond 32 KiB."""
    service = start_service()
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    limit = partial(resource.prlimit, service.process.pid, resource.RLIMIT_FSIZE)
    with closing(sqlite3.connect(connection.settings_dict["NAME"])) as reader:
        # A reader that stays where it is: the log of the database can only grow.
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sqlite_schema").fetchall()
        Scenario(service, ledger, tmp_path).through(
            partial(limit, (32 * 1024, limits[1])), partial(limit, limits)
        )
    assert service.stop() == 0
    assert "disk I/O error" in service.log or "disk is full" in service.log
    assert "Traceback" not in service.log
