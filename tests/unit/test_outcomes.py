# SPDX-License-Identifier: Apache-2.0
"""The pure decisions: whose fault it was, when to try again, and what text is kept."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from django.db import utils
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import outcomes
from carrot_twisted.exceptions import UnknownResult
from carrot_twisted.outcomes import (
    blames_database,
    output_text,
    release_delay,
    returned_text,
    stored,
    value_of,
)

if TYPE_CHECKING:
    from pathlib import Path


def driver_error(
    name: str, text: str = "", module: str = "psycopg", **attributes: Any
) -> Exception:
    """An exception as a database driver raises it."""
    error: Exception = type(name, (Exception,), {"__module__": module, **attributes})(text)
    return error


def wrapped(error: Exception, wrapper: type[Exception] = utils.OperationalError) -> Exception:
    """As Django raises it: its own exception, from the driver's."""
    outer = wrapper(*error.args)
    outer.__cause__ = error
    return outer


TRANSIENT: dict[str, Exception] = {
    "connection lost": driver_error("OperationalError", "the connection is lost"),
    "connection refused": driver_error("OperationalError", "connection refused", "psycopg2"),
    "connection failure": driver_error("ConnectionFailure", sqlstate="08006"),
    "too many connections": driver_error("TooManyConnections", sqlstate="53300"),
    "disk full": driver_error("DiskFull", sqlstate="53100"),
    "administrator's command": driver_error("AdminShutdown", sqlstate="57P01"),
    "starting up": driver_error("CannotConnectNow", sqlstate="57P03"),
    "serialisation": driver_error("SerializationFailure", sqlstate="40001"),
    "deadlock": driver_error("DeadlockDetected", sqlstate="40P01"),
    "lock not available": driver_error("LockNotAvailable", sqlstate="55P03"),
    "deadlock of psycopg2": driver_error("DeadlockDetected", module="psycopg2", pgcode="40P01"),
    "closed connection": utils.InterfaceError("connection already closed"),
    "closed cursor": driver_error("InterfaceError", "the connection is closed"),
    "read-only": wrapped(
        driver_error("ReadOnlySqlTransaction", sqlstate="25006"), utils.InternalError
    ),
    "I/O error": driver_error("IoError", sqlstate="58030"),
    "damaged page": wrapped(driver_error("DataCorrupted", sqlstate="XX001"), utils.InternalError),
    # With an extended result code: SQLITE_IOERR_WRITE.
    "SQLite disk": wrapped(driver_error("OperationalError", "", "sqlite3", sqlite_errorcode=778)),
    "SQLite locked table": wrapped(
        driver_error("OperationalError", "", "sqlite3", sqlite_errorcode=6)
    ),
}
OWN_FAULT: dict[str, Exception] = {
    "value": ValueError("database is locked"),
    "missing table": wrapped(
        driver_error("OperationalError", "no such table: x", "sqlite3", sqlite_errorcode=1)
    ),
    "file of the task's own": driver_error(
        "OperationalError", "unable to open database file", "sqlite3", sqlite_errorcode=14
    ),
    "file to import": driver_error("UndefinedFile", sqlstate="58P01"),
    "idle in its transaction": driver_error("IdleInTransactionSessionTimeout", sqlstate="25P03"),
    "syntax": wrapped(driver_error("SyntaxError", sqlstate="42601"), utils.ProgrammingError),
    "unique": wrapped(driver_error("UniqueViolation", sqlstate="23505"), utils.IntegrityError),
    "wrong password": driver_error("OperationalError", "password", sqlstate="28P01"),
    "statement timeout": wrapped(driver_error("QueryCanceled", sqlstate="57014")),
    "too long a text": wrapped(driver_error("DataError", sqlstate="22001"), utils.DataError),
    "state that is no text": driver_error("Odd", sqlstate=40001),
    "interface": utils.InterfaceError("Error binding parameter 0"),
    "system exit": Exception("SystemExit"),
}


def test_conflicts_are_told_from_outages() -> None:
    conflicts = {what for what, error in TRANSIENT.items() if outcomes.is_conflict(wrapped(error))}
    assert conflicts == {
        "serialisation",
        "deadlock",
        "lock not available",
        "deadlock of psycopg2",
    }
    conflicts = {what for what, error in OWN_FAULT.items() if outcomes.is_conflict(error)}
    # As far as the service's own statements are concerned.
    assert conflicts == {"statement timeout"}


def test_only_for_a_refused_value_waiting_is_in_vain() -> None:
    refusals = {
        what
        for what, error in {**TRANSIENT, **OWN_FAULT}.items()
        if outcomes.is_refusal(wrapped(error))
    }
    assert refusals == {"unique", "too long a text"}
    assert outcomes.is_refusal(utils.DataError("PostgreSQL text fields cannot contain NUL"))
    assert outcomes.is_refusal(wrapped(driver_error("RaiseException", sqlstate="P0001")))


@pytest.mark.parametrize("what", TRANSIENT)
def test_the_databases_trouble_is_not_the_tasks_failure(what: str) -> None:
    assert blames_database(TRANSIENT[what])


@pytest.mark.parametrize("what", TRANSIENT)
def test_it_is_found_under_what_was_raised_because_of_it(what: str) -> None:
    assert blames_database(wrapped(TRANSIENT[what]))
    outer = RuntimeError("while storing the result")
    outer.__context__ = TRANSIENT[what]
    assert blames_database(outer)


@pytest.mark.parametrize("what", OWN_FAULT)
def test_a_mistake_of_the_task_is_its_failure(what: str) -> None:
    assert not blames_database(OWN_FAULT[what])


def test_exceptions_that_cause_each_other_come_to_an_end() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__context__ = two, one
    assert set(outcomes.causes(one)) == {one, two}
    assert not blames_database(one)


def test_base_exceptions_can_be_judged() -> None:
    assert not blames_database(KeyboardInterrupt())


def test_the_delay_doubles_up_to_some_seconds() -> None:
    assert [release_delay(n) for n in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert release_delay(0) == 1
    assert release_delay(10_000) == 10


@given(st.text(st.characters(exclude_categories=())), st.integers(0, 20))
def test_a_stored_text_is_taken_by_every_database(text: str, limit: int) -> None:
    kept = stored(text, limit)
    kept.encode()
    assert "\x00" not in kept
    if len(text) > limit:
        assert f"(cut: {len(text) - limit} of {len(text)} characters)" in kept


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00")))
def test_an_ordinary_text_is_kept_as_it_is(text: str) -> None:
    assert stored(text, len(text)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", ""),
        (0, "0"),
        (False, "False"),
        ({}, "{}"),
        ({"a": None}, '{"a": null}'),
        ([1, None], "[1, None]"),
        ("x" * 11, "x" * 10 + "… (cut: 1 of 11 characters)"),
    ],
)
def test_an_output_is_kept_as_django_carrot_kept_it(value: Any, text: str | None) -> None:
    assert output_text(value, 10 if isinstance(value, str) else 100) == text


@given(
    limit=st.sampled_from([5, 10_000]),
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    ),
)
def test_what_a_task_returns_comes_back_as_it_was_or_is_said_to_be_unknown(
    limit: int, value: Any
) -> None:
    output = output_text(value, limit)
    returned = returned_text(value, output, limit)
    try:
        again = value_of(output, returned)
    except UnknownResult:
        assert len(json.dumps(value, ensure_ascii=False)) > limit
    else:
        assert again == value
        assert type(again) is type(value)
        assert json.loads(outcomes.json_of(output, returned)) == value


@pytest.mark.parametrize(
    "value",
    [(1,), {1: 2}, {1}, object(), float("nan"), 10**5000, b"a", [(1,)]],
    ids=lambda value: type(value).__name__,
)
def test_what_json_would_change_is_unknown(value: Any) -> None:
    output = output_text(value, 100)
    assert returned_text(value, output, 100) is None
    with pytest.raises(UnknownResult):
        value_of(output, None)


def test_a_value_that_cannot_be_compared_is_unknown() -> None:
    class Odd(list[int]):
        def __ne__(self, other: object) -> bool:
            raise SystemExit

    assert returned_text(Odd([1]), "[1]", 100) is None


def test_nothing_is_kept_twice() -> None:
    """A dictionary, a number or a text is in the output already."""
    for value in ({"a": [1, "é"]}, 12, 1.5, "text"):
        returned = returned_text(value, output_text(value, 100), 100)
        assert returned in (outcomes.IS_JSON, outcomes.IS_TEXT)
    assert returned_text(None, None, 100) is None
    assert returned_text(["a"], "['a']", 100) == '["a"]'


def test_of_an_exception_without_text_the_type_is_told() -> None:
    assert outcomes.exception_text(ValueError("a"), 10) == "a"
    assert outcomes.exception_text(ValueError(), 10) == "ValueError"
    assert outcomes.exception_text(ValueError("a\x00\ud800"), 20) == r"a\x00\ud800"
    assert outcomes.exception_text(ValueError("x" * 20), 10).startswith("x" * 10 + "… (cut")


def test_an_exception_whose_text_ends_the_process_is_told_by_its_type() -> None:
    class Rude(Exception):
        def __str__(self) -> str:
            raise SystemExit

    assert outcomes.exception_text(Rude(), 100) == "Rude (its text raised SystemExit)"


def spoil(text: str, path: Path) -> None:
    """Have SQLite raise the error with that text, in a new database."""
    with closing(sqlite3.connect(path, timeout=0)) as file:
        file.execute("CREATE TABLE something (value)")
        file.commit()
        if text == "database is locked":
            file.execute("BEGIN IMMEDIATE")
        elif text == "attempt to write a readonly database":
            file.execute("PRAGMA query_only = 1")
        elif text == "database or disk is full":
            file.execute("PRAGMA max_page_count = 2")
        elif text == "unable to open database file":
            path = path / "a file is no folder"
        elif text == "file is not a database":
            path.write_text("some text" * 1000)
        elif text == "database disk image is malformed":
            data = path.read_bytes()
            path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
        with closing(sqlite3.connect(path, timeout=0)) as other:
            other.execute("SELECT * FROM something").fetchall()
            other.execute("BEGIN IMMEDIATE")
            other.rollback()
            file.execute("INSERT INTO something VALUES (zeroblob(100000))")


@pytest.mark.parametrize(
    "text",
    [
        "database is locked",
        "attempt to write a readonly database",
        "database or disk is full",
        "unable to open database file",
        "file is not a database",
        "database disk image is malformed",
    ],
)
def test_what_sqlite_says_of_its_file_is_not_the_tasks_failure(text: str, tmp_path: Path) -> None:
    with pytest.raises(sqlite3.Error, match=text) as caught:
        spoil(text, tmp_path / "file.sqlite3")
    error = wrapped(caught.value, getattr(utils, caught.typename))
    assert blames_database(error)
    assert not outcomes.is_refusal(error)
    # Not by way of Django: a file of the task's own.
    assert not blames_database(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本", "plain é 日本"),
        ("a\nb\r\x85c\u2028d\te", "a\\nb\\r\\x85c\\u2028d\\te"),
        ("\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("\u202eleft\ud800", "\\u202eleft\\ud800"),
    ],
)
def test_a_text_of_somebody_elses_takes_one_line_of_the_log(text: str, shown: str) -> None:
    assert outcomes.one_line(text, 100) == shown


def test_a_long_text_of_somebody_elses_is_cut() -> None:
    assert outcomes.one_line("x" * 1000, 5) == "xxxxx"


def test_an_error_is_told_in_one_line() -> None:
    error = utils.OperationalError("connection failed\n\tIs the server\n running? \x1b[31m")
    line = "connection failed Is the server running? \\x1b[31m"
    assert outcomes.exception_line(error, 500) == line
    assert outcomes.exception_line(error, 10) == "connection… (cut: 38 of 48 characters)"
    assert outcomes.exception_line(KeyError(), 500) == "KeyError"


def test_of_a_conflict_only_what_is_the_same_each_time() -> None:
    error = utils.OperationalError("deadlock detected\nDETAIL:  Process 7 waits")
    error.__cause__ = driver_error("DeadlockDetected", sqlstate="40P01")
    assert outcomes.exception_line(error, 500) == "deadlock detected"
