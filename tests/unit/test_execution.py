# SPDX-License-Identifier: Apache-2.0
"""One task's run: whatever it does, a ``Result`` comes of it and the thread stays usable."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import sys
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.utils import timezone, translation

from carrot_twisted import execution, signals, task, task_logging
from carrot_twisted.exceptions import PermanentFailure, PoisonMessage, Retry
from carrot_twisted.execution import Limits, Run
from carrot_twisted.models import MessageLog
from carrot_twisted.outcomes import Kind, Result
from tests.unit.test_outcomes import driver_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMITS = Limits(result=1000, log=1000)
logger = logging.getLogger("carrot")


def run_of(function: Callable[..., Any], *args: Any, **changes: Any) -> Run:
    path = f"{__name__}.{function.__name__}"
    values: dict[str, Any] = {
        "uuid": uuid4(),
        "token": 1,
        "task": path,
        "task_args": json.dumps(args),
        "content": "{}",
        "queue": "default",
        "attempt": 1,
        "published": 0.0,
        "header": path,
        "body": b"{}",
    }
    return Run(**(values | changes))


@task(max_retries=2, retry_on={KeyError: 8}, retry_jitter=0)
def picky(what: str) -> None:
    raise {"key": KeyError, "value": ValueError, "never": PermanentFailure}[what]("no")


@task(ignore_result=True)
def unheard() -> str:
    return "nobody wants to know"


def plain_value() -> str:
    return "it"


@task
def heard() -> str:
    return "somebody wants to know"


def asking(delay: float | None = None) -> None:
    raise Retry("not yet", delay=delay)


def asking_for_the_database() -> None:
    try:
        raise OperationalError
    except OperationalError as error:
        error.__cause__ = driver_error("Error", "gone", sqlstate="57P01")
        raise Retry(delay=30) from error


def execute(function: Callable[..., Any], *args: Any, **changes: Any) -> Result:
    return ran(run_of(function, *args, **changes))


def ran(run: Run, on_failure: execution.FailureCallback | None = None) -> Result:
    """What came of it; no thread was given up."""
    result = execution.execute(run, LIMITS, on_failure)
    assert result is not None
    return result


def lines_of(result: Result) -> str:
    """The log, which is there."""
    assert result.log is not None
    return result.log


@pytest.fixture(autouse=True)
def no_connections(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests without a database keep their hands off the connections of those with one."""
    if request.node.get_closest_marker("django_db") is None:
        monkeypatch.setattr(execution, "clean_connections", lambda: None)


@pytest.fixture(autouse=True, scope="module")
def _capture() -> Iterator[None]:
    carrot = logging.getLogger("carrot")
    handlers, level = list(carrot.handlers), carrot.level
    task_logging.capture(set())
    yield
    carrot.handlers, carrot.level = handlers, level


# Tasks.


def echo(*args: Any, **kwargs: Any) -> Any:
    return {"args": list(args), "kwargs": kwargs}


class Mute:
    """Cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Rude:
    """Would end the process of whoever asks for its text."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Liar:
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Quit(BaseException):
    """As SystemExit and KeyboardInterrupt: no ``except Exception`` catches it."""


class Speechless(Exception):
    """Cannot tell what is wrong."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(100_000):
        value = {"a": value}
    return value


VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "text": lambda: "text",
    "empty": lambda: "",
    "number": lambda: 1.5,
    "dict": lambda: {"a": [1, "é"]},
    "dict without JSON": lambda: {1, 2} and {"a": {1}},
    "dict with NaN": lambda: {"a": float("nan")},
    "tuple keys": lambda: {(1, 2): 3},
    "nul": lambda: "a\x00b",
    "surrogate": lambda: "a\udc80b",
    "surrogate in a dict": lambda: {"a": "\ud800"},
    "bytes": lambda: b"\xff",
    "huge number": lambda: 10**5000,
    "long": lambda: "x" * 1001,
    "mute": Mute,
    "rude": Rude,
    "liar": Liar,
    "deep": deep,
    "mute in a dict": lambda: {"a": Mute()},
    "class": lambda: Mute,
    "generator": lambda: iter(()),
}
OUTPUTS: dict[str, str | None] = {
    "none": None,
    "text": "text",
    "empty": "",
    "number": "1.5",
    "dict": '{"a": [1, "é"]}',
    "dict without JSON": "{'a': {1}}",
    "dict with NaN": '{"a": NaN}',
    "tuple keys": "{(1, 2): 3}",
    "nul": r"a\x00b",
    "surrogate": r"a\udc80b",
    "surrogate in a dict": r'{"a": "\ud800"}',
    "bytes": r"b'\xff'",
    "huge number": "(the result of type int has no text: ValueError)",
    "long": "x" * 1000 + "… (cut: 1 of 1001 characters)",
    "mute": "(the result of type Mute has no text: RuntimeError)",
    "rude": "(the result of type Rude has no text: SystemExit)",
    "liar": "(the result of type Liar has no text: TypeError)",
    "deep": "(the result of type dict has no text: RecursionError)",
}


def give(kind: str) -> Any:
    return VALUES[kind]()


def fail(text: str) -> NoReturn:
    raise ValueError(text)


def chain() -> NoReturn:
    try:
        fail("first")
    except ValueError as error:
        raise KeyError("second") from error


def bare() -> NoReturn:
    raise AssertionError


def speechless() -> NoReturn:
    raise Speechless


def leave() -> NoReturn:
    sys.exit(3)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def eat_memory() -> NoReturn:
    raise MemoryError


def close_generator() -> NoReturn:
    raise GeneratorExit


def recurse() -> Any:
    return recurse()


def cancel() -> NoReturn:
    raise asyncio.CancelledError


async def later(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise ValueError("later")


def say(*lines: str) -> None:
    for line in lines:
        logger.info(line)


def say_and_fail() -> NoReturn:
    logger.debug("%s of %d", "step", 2)
    raise ValueError("no")


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="untouched")


def leak_context() -> None:
    variable.set("leaked")
    translation.activate("de")
    timezone.activate("Asia/Tokyo")


def look_at_context() -> str:
    return f"{variable.get()} {translation.get_language()} {timezone.get_current_timezone_name()}"


def database_away() -> NoReturn:
    raise OperationalError from type("SerializationFailure", (Exception,), {"sqlstate": "40001"})()


def table_missing() -> NoReturn:
    raise OperationalError("no such table: nonsense")


not_a_function = 5


# What comes of a run.


def test_arguments_are_the_rows_and_not_the_messages() -> None:
    body = b'{"args": ["forged"], "kwargs": {"also": 1}}'
    result = execute(echo, 1, [2], content='{"a": null}', body=body)
    assert result.kind is Kind.COMPLETED
    assert json.loads(result.output or "") == {"args": [1, [2]], "kwargs": {"a": None}}
    assert (result.exception, result.traceback, result.delay) == (None, None, 0.0)


def test_a_large_body_of_a_large_row_may_be_written_in_another_way() -> None:
    """As django-carrot does, whose messages have only ASCII."""
    text = "é" * 300_000
    body = json.dumps({"args": [text]}).encode()
    assert execute(echo, text, body=body).kind is Kind.COMPLETED


@pytest.mark.parametrize("kind", VALUES)
def test_any_return_value_is_a_success_and_a_text_that_every_database_takes(kind: str) -> None:
    result = execute(give, kind)
    assert result.kind is Kind.COMPLETED
    if result.output is not None:
        result.output.encode()
        assert "\x00" not in result.output
        assert len(result.output) <= LIMITS.result + 100
    if kind in OUTPUTS:
        assert result.output == OUTPUTS[kind]


def test_a_failure_keeps_its_text_and_traceback() -> None:
    result = execute(fail, "broken \x00 \udc80")
    assert (result.kind, result.output) == (Kind.FAILED, None)
    assert result.exception == r"broken \x00 \udc80"
    assert result.traceback is not None
    assert result.traceback.startswith("Traceback (most recent call last)")
    assert "in fail\n" in result.traceback
    assert result.traceback.endswith("ValueError: broken \\x00 \\udc80\n")


class LeavesWhenRead(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__notes__":
            raise SystemExit
        return super().__getattribute__(name)


def fail_unreadably() -> None:
    raise LeavesWhenRead("broken")


def test_a_failure_that_cannot_be_read_is_one_all_the_same() -> None:
    result = execute(fail_unreadably)
    assert (result.kind, result.exception) == (Kind.FAILED, "broken")
    told = "LeavesWhenRead: no traceback (SystemExit while formatting it)"
    assert result.traceback == told


def test_the_traceback_tells_of_the_cause_as_well() -> None:
    result = execute(chain)
    assert result.exception == "'second'"
    assert "ValueError: first" in (result.traceback or "")


def test_of_a_long_traceback_the_end_is_kept() -> None:
    result = execute(fail, "x" * 5000 + "END")
    assert result.traceback is not None
    assert len(result.traceback) <= LIMITS.result
    assert result.traceback.endswith("END\n")


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (bare, "AssertionError"),
        (speechless, "Speechless (its text raised RuntimeError)"),
        (leave, "3"),
        (interrupt, "KeyboardInterrupt"),
        (eat_memory, "MemoryError"),
        (close_generator, "GeneratorExit"),
        (cancel, "CancelledError"),
        (recurse, "maximum recursion depth exceeded"),
        (fail_later, "later"),
    ],
)
def test_whatever_a_task_raises_is_its_own_failure(task: Callable[..., Any], text: str) -> None:
    result = execute(task)
    assert result.kind is Kind.FAILED
    assert result.exception is not None
    assert result.exception.startswith(text)
    assert result.traceback


def test_a_coroutine_function_is_run_to_its_end() -> None:
    result = execute(later, 41)
    assert (result.kind, result.output) == (Kind.COMPLETED, "42")


def test_start_and_end_are_taken_around_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 103.0])
    monkeypatch.setattr("carrot_twisted.execution.time.time", lambda: next(times))
    result = execute(echo)
    assert (result.started, result.ended) == (100.0, 103.0)


# What cannot run.


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"header": None}, "has no header 'type' that names a task"),
        ({"header": "os.getcwd"}, "The message names task 'os.getcwd', its row"),
        ({"body": b"not json"}, "The message body is not JSON"),
        ({"body": b"[]"}, "not a JSON object"),
        ({"body": b"\xff"}, "The message body is not JSON"),
        ({"body": b'{"args": [' + b"[]," * 400_000 + b"1]}"}, "The message body has 1200013 bytes"),
        ({"task": "nowhere.work", "header": "nowhere.work"}, "Unable to find the module: nowhere"),
        ({"task": "nodots", "header": "nodots"}, "not of the form module.function"),
        ({"task": "os.no_such", "header": "os.no_such"}, "a function called no_such"),
        (
            {"task": f"{__name__}.not_a_function", "header": f"{__name__}.not_a_function"},
            "Unable to find a function called not_a_function",
        ),
        ({"task_args": "(1, 2)"}, "Expecting value"),
        ({"content": "[1]"}, "must be a mapping"),
    ],
)
def test_poison_fails_with_the_reason_and_nothing_is_called(
    changes: dict[str, Any], text: str
) -> None:
    started: list[object] = []

    def receiver(**kwargs: Any) -> None:
        started.append(kwargs["sender"])

    signals.task_started.connect(receiver)
    try:
        result = execute(echo, **changes)
    finally:
        signals.task_started.disconnect(receiver)
    assert result.kind is Kind.FAILED
    assert text in (result.exception or "")
    assert started == [] or text == "must be a mapping"


# Log lines.


def test_log_lines_of_a_run_are_kept_in_order_with_their_level() -> None:
    result = execute(say, "one", "two")
    first, second = lines_of(result).splitlines()
    assert first.endswith("INFO:: one")
    assert second.endswith("INFO:: two")


def test_the_lines_of_a_failure_are_kept_down_to_debug() -> None:
    assert lines_of(execute(say_and_fail)).endswith("DEBUG:: step of 2")


def test_no_line_bleeds_into_another_run_and_none_of_outside_is_taken() -> None:
    logger.info("before")
    first = execute(say, "mine")
    logger.info("between")
    second = execute(echo)
    assert lines_of(first).count("\n") == 0
    assert lines_of(first).endswith("mine")
    assert lines_of(second) == ""


def test_a_flood_of_lines_is_cut_and_said_so() -> None:
    log = lines_of(execute(say, *["x" * 100] * 50))
    assert len(log) < LIMITS.log + 250
    assert "\n… (cut: 44 lines, " in log
    assert log.startswith("MainThread ")
    assert log.endswith("x" * 100)


def test_one_enormous_line_is_cut_as_well() -> None:
    log = lines_of(execute(say, "y" * 100_000))
    assert len(log) < LIMITS.log + 250
    assert "y" * 400 in log
    assert log.endswith("… (cut: 99542 of 100042 characters)")


def test_log_lines_are_fit_for_the_database() -> None:
    assert lines_of(execute(say, "a\x00b\udc80")).endswith(r"a\x00b\udc80")


# Nothing leaks.


def test_no_context_leaks_from_task_to_task_nor_out() -> None:
    before = look_at_context()
    execute(leak_context)
    assert execute(look_at_context).output == before
    assert look_at_context() == before


def test_the_callers_context_does_not_leak_in() -> None:
    token = variable.set("the caller's")
    try:
        assert (execute(look_at_context).output or "").startswith("untouched ")
    finally:
        variable.reset(token)


# Callbacks and signals.


def test_the_failure_callback_gets_run_and_error_and_may_log() -> None:
    called: list[tuple[Run, str]] = []

    def on_failure(run: Run, error: BaseException) -> None:
        called.append((run, str(error)))
        logger.error("from the callback")

    run = run_of(fail, "no")
    result = ran(run, on_failure)
    assert called == [(run, "no")]
    assert lines_of(result).endswith("from the callback")


@pytest.mark.parametrize("task", [echo, database_away])
def test_the_failure_callback_is_not_called_for_what_is_no_failure(
    task: Callable[..., Any],
) -> None:
    def on_failure(run: Run, error: BaseException) -> None:
        pytest.fail("called")

    result = ran(run_of(task), on_failure)
    assert result.kind is not Kind.FAILED


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, Quit])
def test_a_failure_callback_that_raises_does_not_hide_the_failure(
    error: type[BaseException],
) -> None:
    """A user's callback may call sys.exit(): contract 6 says that no callback stops the service."""

    def on_failure(run: Run, _error: BaseException) -> None:
        raise error

    result = ran(run_of(fail, "no"), on_failure)
    assert (result.kind, result.exception) == (Kind.FAILED, "no")


@pytest.fixture
def facts() -> Iterator[list[tuple[Any, ...]]]:
    """What the signals told, in order."""
    told: list[tuple[Any, ...]] = []

    def started(sender: str, run: Run, **_: Any) -> None:
        told.append(("started", sender, run.uuid))

    def finished(sender: str, run: Run, result: Result, **_: Any) -> None:
        told.append(("finished", sender, run.uuid, result))

    signals.task_started.connect(started)
    signals.task_finished.connect(finished)
    yield told
    signals.task_started.disconnect(started)
    signals.task_finished.disconnect(finished)


@pytest.mark.parametrize("arguments", [(echo,), (fail, "no"), (database_away,)])
def test_start_and_end_of_a_task_are_told(
    arguments: tuple[Any, ...], facts: list[tuple[Any, ...]]
) -> None:
    run = run_of(*arguments)
    result = execution.execute(run, LIMITS)
    assert facts == [
        ("started", run.task, run.uuid),
        ("finished", run.task, run.uuid, result),
    ]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, Quit])
@pytest.mark.parametrize("signal", [signals.task_started, signals.task_finished])
def test_a_receiver_that_raises_stops_nothing(signal: Any, error: type[BaseException]) -> None:
    def receiver(**_: Any) -> None:
        raise error

    signal.connect(receiver)
    try:
        result = execute(give, "text")
    finally:
        signal.disconnect(receiver)
    assert (result.kind, result.output) == (Kind.COMPLETED, "text")


# The database.


@pytest.fixture
def lasting() -> Iterator[None]:
    """Connections live on between tasks."""
    given = connection.settings_dict
    before = given["CONN_MAX_AGE"]
    given["CONN_MAX_AGE"] = None
    connection.close()
    yield
    given["CONN_MAX_AGE"] = before


def test_an_error_that_blames_the_database_releases_the_task() -> None:
    result = execute(database_away, attempt=3)
    assert result.kind is Kind.RELEASED
    assert result.delay == 4.0
    assert "SerializationFailure" in (result.traceback or "")


def test_an_error_that_blames_the_statement_is_the_tasks_failure() -> None:
    assert execute(table_missing).kind is Kind.FAILED


def leak_atomic() -> None:
    transaction.atomic().__enter__()
    MessageLog.objects.create(task="leaked", queue="default")


def leak_broken_atomic() -> None:
    leak_atomic()
    transaction.set_rollback(True)


def leak_begin() -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    MessageLog.objects.create(task="leaked", queue="default")


def leak_autocommit() -> None:
    transaction.set_autocommit(False)
    MessageLog.objects.create(task="leaked", queue="default")


def leak_and_fail() -> NoReturn:
    leak_atomic()
    raise ValueError("no")


def insert() -> None:
    MessageLog.objects.create(task="kept", queue="default")


def insert_and_roll_back() -> NoReturn:
    with transaction.atomic():
        MessageLog.objects.create(task="rolled back", queue="default")
        raise ValueError("no")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "leak", [leak_atomic, leak_broken_atomic, leak_begin, leak_autocommit, leak_and_fail]
)
def test_a_leaked_transaction_is_rolled_back_and_the_next_task_commits(
    leak: Callable[..., Any],
) -> None:
    execute(leak)
    assert execute(insert).kind is Kind.COMPLETED
    assert list(MessageLog.objects.values_list("task", flat=True)) == ["kept"]
    assert connection.get_autocommit()
    assert not connection.in_atomic_block


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_the_caller_of_the_thread_left_open_is_not_the_tasks() -> None:
    leak_atomic()
    assert execute(insert).kind is Kind.COMPLETED
    assert list(MessageLog.objects.values_list("task", flat=True)) == ["kept"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("lasting")
def test_a_clean_connection_is_kept_from_task_to_task() -> None:
    execute(insert)
    before = connections["default"].connection
    assert before is not None
    execute(insert_and_roll_back)
    execute(insert)
    assert connections["default"].connection is before
    assert MessageLog.objects.count() == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("lasting")
def test_a_connection_that_the_task_broke_is_replaced() -> None:
    execute(insert)
    connections["default"].connection.close()
    execute(echo)
    assert execute(insert).kind is Kind.COMPLETED


@pytest.mark.django_db(transaction=True)
def test_with_debug_on_queries_do_not_pile_up(settings: Any) -> None:
    settings.DEBUG = True
    execute(insert)
    assert connections["default"].queries == []


# A hostile exception.


class Trap(Exception):
    """Each look at it is a mistake."""

    @property
    def sqlstate(self) -> str:
        raise RuntimeError("do not look")


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


Silent.__name__ = "OperationalError"


def spring_trap() -> NoReturn:
    raise Trap


def silent() -> NoReturn:
    raise Silent


@pytest.mark.parametrize("task", [spring_trap, silent])
def test_an_exception_that_cannot_be_examined_is_a_failure_like_any_other(
    task: Callable[..., Any],
) -> None:
    assert execute(task).kind is Kind.FAILED


def test_a_poison_message_is_the_package_s_own_exception() -> None:
    assert issubclass(PoisonMessage, Exception)
    assert "PoisonMessage: " in (execute(echo, header=None).traceback or "")


# Retries.


@pytest.mark.parametrize(
    ("what", "retries", "kind", "delay"),
    [
        ("key", 0, Kind.RETRY, 8.0),
        ("key", 1, Kind.RETRY, 16.0),
        ("key", 2, Kind.FAILED, 0.0),
        ("value", 0, Kind.FAILED, 0.0),
        ("never", 0, Kind.FAILED, 0.0),
    ],
)
def test_a_task_is_tried_again_as_its_decorator_says(
    what: str, retries: int, kind: Kind, delay: float
) -> None:
    told: list[BaseException] = []
    run = run_of(picky, what, retries=retries)
    result = ran(run, on_failure=lambda _, error: told.append(error))
    assert (result.kind, result.delay, bool(told)) == (kind, delay, kind is Kind.FAILED)
    assert "no" in (result.exception or "")
    assert "picky" in (result.traceback or "")


def test_retry_works_in_any_task() -> None:
    result = execute(asking, 30)
    assert (result.kind, result.delay, result.exception) == (Kind.RETRY, 30.0, "not yet")
    assert execute(asking, 30, retries=3).kind is Kind.FAILED
    assert execute(asking).kind is Kind.RETRY


def test_who_asks_for_a_retry_because_of_a_database_gets_the_delay_that_was_asked_for() -> None:
    result = execute(asking_for_the_database)
    assert (result.kind, result.delay) == (Kind.RETRY, 30.0)


def test_a_result_may_be_left_out(settings: Any) -> None:
    assert (execute(unheard).kind, execute(unheard).output) == (Kind.COMPLETED, None)
    assert execute(heard).output == "somebody wants to know"
    settings.CARROT = {"task_defaults": {"ignore_result": True, "max_retries": 0}}
    assert execute(heard).output is None
    assert execute(plain_value).output == "it", "no decorator"
    assert execute(picky, "key").kind is Kind.RETRY, "the decorator goes before"
