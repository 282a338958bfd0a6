# SPDX-License-Identifier: Apache-2.0
"""What a project calls: django-carrot's signatures, rows as told, or an error and no row."""

from __future__ import annotations

import inspect
import types
from typing import TYPE_CHECKING, Any

import pytest
from django.db import IntegrityError, connection, transaction

from carrot_twisted import outcomes, utilities
from carrot_twisted.exceptions import CarrotConfigException, InvalidMessage
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import (
    create_message,
    get_host_from_name,
    publish_many,
    publish_message,
    validate_task,
)
from carrot_twisted.virtual_host import VirtualHost
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.conftest import RecordingPublisher

TASK = "tests.project.tasks.noop"


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (get_host_from_name, "(name)"),
        (validate_task, "(task)"),
        (
            create_message,
            "(task, queue, priority=0, task_args=(), exchange='', routing_key=None, "
            "task_kwargs=None)",
        ),
        (
            publish_message,
            "(task, *task_args, priority=0, queue=None, exchange='', routing_key=None, "
            "**task_kwargs)",
        ),
        (utilities.get_mixin, "(decorator)"),
        (utilities.create_class_view, "(view, decorator)"),
        (utilities.decorate_class_view, "(view_class, decorators=None)"),
        (utilities.create_function_view, "(view, decorator)"),
        (utilities.decorate_function_view, "(view, decorators=None)"),
        (utilities.requeue_all, "()"),
    ],
)
def test_signatures_are_django_carrots(function: Callable[..., Any], signature: str) -> None:
    theirs: dict[str, Any] = {}
    exec(f"def their{signature}: pass", theirs)  # noqa: S102
    wanted = inspect.signature(theirs["their"]).parameters
    ours = inspect.signature(function).parameters
    assert list(ours) == list(wanted)
    for name, parameter in wanted.items():
        assert ours[name].kind is parameter.kind
        if parameter.default is not inspect.Parameter.empty:
            # None: the task's own, or else what django-carrot has.
            assert ours[name].default == parameter.default or ours[name].default is None


def test_all_functions_of_django_carrot_are_there() -> None:
    names = {
        "get_host_from_name",
        "validate_task",
        "create_message",
        "publish_message",
        "create_scheduled_task",
        "get_mixin",
        "create_class_view",
        "decorate_class_view",
        "create_function_view",
        "decorate_function_view",
        "purge_queue",
        "requeue_all",
    }
    assert names <= set(utilities.__all__) <= set(vars(utilities))
    assert all((getattr(utilities, name).__doc__ or "").strip() for name in names)


# create_message: which order of arguments is it?

QUEUE, ARGS, KWARGS = "other", [1, "a"], {"k": 2}


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        # django-carrot's release 1.5.0
        ((QUEUE, 3, ARGS, "x", "key", KWARGS), {}),
        ((QUEUE, 3, ARGS, "x", "key"), {"task_kwargs": KWARGS}),
        ((QUEUE, 3), {"task_args": ARGS, "exchange": "x", "routing_key": "key"}),
        ((QUEUE,), {"priority": 3, "task_args": ARGS, "exchange": "x", "routing_key": "key"}),
        # its documentation
        ((3, ARGS, QUEUE, "x", "key", KWARGS), {}),
        ((3, tuple(ARGS), QUEUE, "x"), {"routing_key": "key"}),
        ((3, ARGS), {"queue": QUEUE, "exchange": "x", "routing_key": "key"}),
        ((3,), {"queue": QUEUE, "task_args": ARGS, "exchange": "x", "routing_key": "key"}),
        # by keyword
        (
            (),
            {
                "queue": QUEUE,
                "priority": 3,
                "task_args": ARGS,
                "exchange": "x",
                "routing_key": "key",
            },
        ),
    ],
)
def test_both_orders_of_arguments_are_understood(
    positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    if len(positional) < 6:
        named = {"task_kwargs": KWARGS, **named}
    make: Any = create_message
    message = make(TASK, *positional, **named)
    assert (message.queue, message.priority, message.task_args) == (QUEUE, 3, tuple(ARGS))
    assert (message.exchange, message.routing_key) == ("x", "key")
    assert message.task_kwargs == KWARGS


@pytest.mark.parametrize(
    ("positional", "wanted"),
    [
        ((None,), ("default", 0, ())),
        ((None, 3), ("default", 3, ())),
        ((None, 3, ARGS), ("default", 3, (1, "a"))),
        ((None, ARGS), ("default", 0, (1, "a"))),
        ((None, ARGS, None), ("default", 0, (1, "a"))),
        ((None, ARGS, QUEUE), (QUEUE, 0, (1, "a"))),
        ((0, (), None), ("default", 0, ())),
        (("", 0, ()), ("default", 0, ())),
    ],
)
def test_none_is_told_by_what_follows_it(
    positional: tuple[Any, ...], wanted: tuple[Any, ...]
) -> None:
    make: Any = create_message
    message = make(TASK, *positional)
    assert (message.queue, message.priority, message.task_args) == wanted


@pytest.mark.parametrize(
    "positional",
    [
        (3, QUEUE),
        (3, ARGS, 5),
        (3, None),
        (QUEUE, ARGS),
        (QUEUE, "3"),
        (QUEUE, None),
        (QUEUE, 3, "text"),
        (QUEUE, 3, None),
        (None, None),
        (None, None, ARGS),
        (None, ARGS, 3),
        (ARGS,),
        (1.5,),
        ({"k": 2},),
    ],
    ids=repr,
)
def test_what_is_in_neither_order_is_refused_and_not_guessed(positional: tuple[Any, ...]) -> None:
    make: Any = create_message
    with pytest.raises(InvalidMessage, match=r"create_message\(task, queue='default', priority=0"):
        make(TASK, *positional)


@pytest.mark.parametrize("value", ["abc", b"abc", {"a": 1}, 5, None], ids=repr)
def test_a_text_is_no_list_of_arguments(value: Any) -> None:
    """It would arrive as its characters."""
    with pytest.raises(InvalidMessage, match="task_args is a list or tuple of the task's argu"):
        create_message(TASK, task_args=value)


@pytest.mark.parametrize(
    ("positional", "named"),
    [
        ((QUEUE,), {"queue": QUEUE}),
        ((3,), {"priority": 3}),
        ((), {"args": [1]}),
        ((QUEUE, 0, (), "", None, None, 1), {}),
    ],
)
def test_arguments_that_python_refuses_are_refused_as_ever(
    positional: tuple[Any, ...], named: dict[str, Any]
) -> None:
    make: Any = create_message
    with pytest.raises(TypeError):
        make(TASK, *positional, **named)


# validate_task


class Worker:
    """Things that a worker could not find by a path."""

    def method(self) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...

    @staticmethod
    def static() -> None: ...

    def __call__(self) -> None: ...


def nested() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


def of_main() -> Callable[[], None]:
    def typed_into_a_shell() -> None: ...

    typed_into_a_shell.__module__ = "__main__"
    typed_into_a_shell.__qualname__ = "typed_into_a_shell"
    return typed_into_a_shell


def decorated_twin() -> Callable[[], None]:
    """Bears the name of the function in the module, and is another one."""

    def noop() -> None: ...

    noop.__module__ = tasks.__name__
    noop.__qualname__ = "noop"
    return noop


def test_a_function_and_its_path_are_the_same_task() -> None:
    assert validate_task(tasks.noop) == validate_task(TASK) == TASK


UNUSABLE: dict[str, Any] = {
    "lambda": lambda: None,
    "nested": nested(),
    "method": Worker().method,
    "unbound method": Worker.method,
    "class method": Worker.of_class,
    "static method": Worker.static,
    "instance": Worker(),
    "shell": of_main(),
    "twin": decorated_twin(),
    "partial": __import__("functools").partial(tasks.noop),
    "number": 5,
    "none": None,
    "module": types,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_task_that_no_worker_could_import_is_refused(kind: str) -> None:
    with pytest.raises(InvalidMessage):
        validate_task(UNUSABLE[kind])


def test_the_error_says_where_to_define_a_task() -> None:
    with pytest.raises(InvalidMessage, match=r"at the top of a module of your project"):
        validate_task(lambda: None)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("no.such.f", ImportError),
        ("noop", ImportError),
        ("", ImportError),
        ("tests.project.tasks.no_such", AttributeError),
    ],
)
def test_a_path_is_looked_up(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        validate_task(path)


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("no.such.f", ImportError, "Unable to find the module: no.such "),
        ("noop", ImportError, "Unable to find the module: 'noop' is not of the form module.func"),
        (
            "tests.project.tasks.no_such",
            AttributeError,
            "Unable to find a function called no_such in the module tests.project.tasks",
        ),
    ],
)
def test_the_error_of_a_path_is_django_carrots(
    path: str, error: type[Exception], text: str
) -> None:
    """Also for a bare name, where django-carrot let a "ValueError: Empty module name" through."""
    with pytest.raises(error, match=text):
        validate_task(path)


# get_host_from_name


def test_the_host_of_a_queue_is_found_by_its_name(settings: Any) -> None:
    settings.CARROT = {
        "default_broker": "amqp://u:p@one/",
        "queues": [{"name": "default"}, {"name": "mail", "host": "amqp://u:p@two/"}],
    }
    one, two = VirtualHost("amqp://u:p@one/"), VirtualHost("amqp://u:p@two/")
    assert get_host_from_name("mail") == two
    assert get_host_from_name("default") == get_host_from_name(None) == one
    assert get_host_from_name("") == one
    with pytest.raises(CarrotConfigException, match="Cannot find queue called post in"):
        get_host_from_name("post")


def test_without_a_name_it_is_the_default_broker_whatever_the_queues(settings: Any) -> None:
    settings.CARROT = {
        "default_broker": "amqp://u:p@one/",
        "queues": [{"name": "default", "host": "amqp://u:p@two/"}],
    }
    assert get_host_from_name(None) == VirtualHost("amqp://u:p@one/")


# publish_message


@pytest.mark.django_db
def test_publishing_writes_the_fields_of_the_row() -> None:
    log = publish_message(
        tasks.noop, 1, [2], priority=3, queue="other", exchange="x", routing_key="key", name="é"
    )
    log.refresh_from_db()
    assert (log.status, log.task) == ("PUBLISHED", TASK)
    assert (log.positionals, log.keywords) == ((1, [2]), {"name": "é"})
    assert (log.queue, log.exchange, log.routing_key, log.priority) == ("other", "x", "key", 3)
    assert (log.attempts, log.crashes, log.worker, log.publish_error) == (0, 0, "", "")
    assert (log.start_time, log.confirmed_at, log.retry_of) == (None,) * 3
    assert log.token is not None
    assert log.publish_time is not None
    assert log.relay_at == log.publish_time


@pytest.mark.django_db
@pytest.mark.parametrize("queue", [None, ""])
def test_the_least_that_can_be_said(queue: str | None) -> None:
    log = publish_message(TASK, queue=queue)
    assert (log.queue, log.routing_key, log.exchange) == ("default", "default", "")
    assert (log.task_args, log.content) == ("[]", "{}")


@pytest.mark.django_db(transaction=True)
def test_a_row_is_handed_over_when_it_is_committed_and_not_before(
    handed_over: RecordingPublisher,
) -> None:
    with transaction.atomic():
        log = publish_message(TASK)
        assert handed_over.rows == []
    assert handed_over.rows == [log]


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_is_rolled_back_publishes_nothing(
    handed_over: RecordingPublisher,
) -> None:
    with transaction.atomic():
        publish_message(TASK)
        publish_many([create_message(TASK), create_message(TASK)])
        transaction.set_rollback(True)
    assert handed_over.rows == []
    assert not MessageLog.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_publisher_that_fails_does_not_tell_the_caller_that_the_commit_failed(
    handed_over: RecordingPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*_: Any) -> None:
        raise RuntimeError("no thread could be started")

    monkeypatch.setattr(handed_over, "submit", submit)
    publish_message(TASK)
    assert MessageLog.objects.count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    "arguments",
    [
        {"priority": 256},
        {"queue": "no_such"},
        {"a": object()},
        {"exchange": "x" * 256},
        {"task": "tests.project.tasks.no_such"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_nothing_is_inserted_when_something_is_refused(
    arguments: dict[str, Any], handed_over: RecordingPublisher
) -> None:
    values: dict[str, Any] = {"task": TASK, **arguments}
    with pytest.raises((ValueError, CarrotConfigException, AttributeError)):
        publish_message(**values)
    assert not MessageLog.objects.exists()
    assert handed_over.rows == []


@pytest.mark.defect(6)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "mistake",
    [{"priority": 256}, {"task_args": [object()]}, {"task_kwargs": {"a": {1}}}, {"queue": "gone"}],
    ids=lambda value: next(iter(value)),
)
def test_what_cannot_be_sent_leaves_no_row(
    mistake: dict[str, Any], handed_over: RecordingPublisher
) -> None:
    """django-carrot inserted the row first, then met the error: the row stayed PUBLISHED."""
    with pytest.raises((InvalidMessage, CarrotConfigException)):
        create_message(TASK, **mistake).publish()
    assert not MessageLog.objects.exists()
    assert handed_over.rows == []


@pytest.mark.defect(6)
@pytest.mark.django_db
def test_keyword_arguments_may_have_any_name() -> None:
    names = ("priority", "queue", "exchange", "routing_key", "task")
    log = create_message(TASK, task_kwargs=dict.fromkeys(names, 1)).publish()
    assert log.keywords == dict.fromkeys(names, 1)


@pytest.mark.defect(27)
@pytest.mark.parametrize("value", [{"a": object()}, {1: {2}}], ids=["object", "set"])
def test_a_result_that_is_not_json_fails_no_task(value: dict[Any, Any]) -> None:
    """django-carrot called such a task FAILED, although it had done its work."""
    assert outcomes.output_text(value, 1000) == str(value)


@pytest.mark.django_db
def test_names_that_publish_message_takes_itself_go_by_create_message() -> None:
    log = create_message(TASK, task_kwargs={"queue": "a", "priority": 1, "task": 2}).publish()
    assert log.keywords == {"queue": "a", "priority": 1, "task": 2}


@pytest.mark.django_db
def test_create_message_writes_nothing() -> None:
    message = create_message(TASK, "other", 0, (1,), "", None, {"a": 2})
    assert not MessageLog.objects.exists()
    assert message.publish().queue == "other"


@pytest.mark.django_db
def test_a_message_can_be_published_once() -> None:
    message = create_message(TASK)
    message.publish()
    with pytest.raises(IntegrityError), transaction.atomic():
        message.publish()
    assert MessageLog.objects.count() == 1


# publish_many


@pytest.mark.django_db(transaction=True)
def test_many_are_inserted_in_order_and_handed_over_together(
    handed_over: RecordingPublisher,
) -> None:
    logs = publish_many(create_message(TASK, task_args=(n,)) for n in range(50))
    assert [log.positionals for log in logs] == [(n,) for n in range(50)]
    assert handed_over.rows == logs
    stored = MessageLog.objects.in_bulk()
    for log in logs:
        got = stored[log.pk]
        for field in MessageLog._meta.concrete_fields:
            assert getattr(got, field.attname) == getattr(log, field.attname)


@pytest.mark.django_db
@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_write_the_same_row(count: int) -> None:
    """One goes by the ORM, two by a statement of our own."""
    messages = [
        create_message(tasks.noop, "other", 3, (1,), "x", "key", {"a": "é"}) for _ in range(count)
    ]
    for log in publish_many(messages):
        log.refresh_from_db()
        values = {
            field.attname: getattr(log, field.attname)
            for field in MessageLog._meta.concrete_fields
            if field.attname not in ("uuid", "publish_time", "relay_at", "token")
        }
        assert values == {
            "status": "PUBLISHED",
            "task": TASK,
            "task_args": "[1]",
            "content": '{"a": "é"}',
            "exchange": "x",
            "queue": "other",
            "routing_key": "key",
            "priority": 3,
            "attempts": 0,
            "crashes": 0,
            "retries": 0,
            "worker": "",
            "publish_error": "",
            **dict.fromkeys(
                [
                    "flow",
                    "flow_position",
                    "flow_step",
                    "returned",
                    "start_time",
                    "completion_time",
                    "failure_time",
                    "output",
                    "exception",
                    "traceback",
                    "log",
                    "confirmed_at",
                    *("retry_of", "run_after", "expires_at"),
                    *("unique_key", "unique_until", "retention"),
                    *("exception_class", "django_task", "cancel_request", "progress"),
                    *("slot_key", "rate_key", "waits_for", "trace"),
                ]
            ),
        }
        assert log.publish_time == log.relay_at
        assert log.token is not None


@pytest.mark.django_db
def test_of_nothing_nothing_comes(
    django_assert_num_queries: Any, handed_over: RecordingPublisher
) -> None:
    with django_assert_num_queries(0):
        assert publish_many(iter(())) == []
    assert handed_over.rows == []


@pytest.mark.django_db(transaction=True)
def test_all_are_published_or_none(
    handed_over: RecordingPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also across several statements."""
    monkeypatch.setattr("carrot_twisted.message_log_set.INSERT_BATCH", 2)
    message = create_message(TASK)
    with pytest.raises(IntegrityError):
        publish_many([message, create_message(TASK), create_message(TASK), message])
    assert not MessageLog.objects.exists()
    assert handed_over.rows == []
    assert connection.get_autocommit()


@pytest.mark.django_db
def test_a_mistake_in_the_middle_publishes_none() -> None:
    with pytest.raises(InvalidMessage):
        publish_many(create_message(TASK, priority=n) for n in (0, 1, 256, 2))
    assert not MessageLog.objects.exists()


@pytest.mark.django_db
def test_the_rows_of_many_can_be_saved_afterwards() -> None:
    """They know that they are in the database."""
    log, _ = publish_many([create_message(TASK), create_message(TASK)])
    assert log._state.db == "default"
    log.routing_key = "changed"
    log.save()
    assert MessageLog.objects.get(pk=log.pk).routing_key == "changed"
    assert MessageLog.objects.count() == 2


@pytest.mark.django_db
def test_requeue_all_tells_of_queues_that_left_the_settings(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No service sends their messages."""
    for queue, status in (("gone", "PUBLISHED"), ("gone", "PUBLISHED"), ("old", "COMPLETED")):
        MessageLog.objects.create(task=TASK, queue=queue, status=status)
    assert utilities.requeue_all() == 0
    (text,) = caplog.messages
    assert text.startswith("Queue 'gone' is not in CARROT['queues']")


def test_the_public_functions_have_documentation() -> None:
    for name in ("publish_message", "publish_many", "create_message", "validate_task"):
        assert (getattr(utilities, name).__doc__ or "").strip()
