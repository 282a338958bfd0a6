# SPDX-License-Identifier: Apache-2.0
"""Messages and serialisers: django-carrot's signatures, and nothing wrong gets into a row."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions
import pytest

from carrot_twisted import exceptions, message_log, objects, task_paths
from carrot_twisted.exceptions import (
    BrokerError,
    CarrotConfigException,
    InvalidMessage,
    PoisonMessage,
)
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import (
    BaseMessageSerializer,
    DefaultMessageSerializer,
    Message,
    VirtualHost,
    resolve_task,
)
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

TASK = "tests.project.tasks.noop"


@pytest.mark.parametrize(
    ("function", "signature"),
    [
        (
            VirtualHost,
            "(url=None, host='localhost', name='%2f', port=5672, username='guest', "
            "password='guest', secure=False)",
        ),
        (
            Message,
            "(task, virtual_host=None, queue='default', routing_key=None, exchange='', "
            "priority=0, task_args=(), task_kwargs=None)",
        ),
        (BaseMessageSerializer, "(message)"),
        (DefaultMessageSerializer, "(message)"),
        (BaseMessageSerializer.get_task, "(properties, body)"),
        (BaseMessageSerializer.publish_kwargs, "(self)"),
        (BaseMessageSerializer.body, "(self)"),
        (BaseMessageSerializer.properties, "(self)"),
        (BaseMessageSerializer.serialize_arguments, "(body)"),
        (BaseMessageSerializer.publish, "(self, connection, channel)"),
        (Message.publish, "(self, pika_log_level=40)"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures_are_django_carrots(function: Callable[..., Any], signature: str) -> None:
    """Names and order; a default may be added where it had none, never taken away."""
    theirs: dict[str, Any] = {}
    exec(f"def their{signature}: pass", theirs)  # noqa: S102
    wanted = inspect.signature(theirs["their"]).parameters
    ours = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        # What is added can only be given by name.
        if parameter.kind is not parameter.KEYWORD_ONLY
    }
    assert list(ours) == list(wanted)
    for name, parameter in wanted.items():
        assert ours[name].kind is parameter.kind
        if parameter.default is not inspect.Parameter.empty and name != "port":
            # None: the task's own, or else what django-carrot has.
            assert ours[name].default == parameter.default or ours[name].default is None


def test_a_message_knows_all_that_goes_out() -> None:
    message = Message(TASK, task_args=(1,), task_kwargs={"a": "é"}, priority=3, queue="other")
    assert (message.task, message.queue, message.routing_key) == (TASK, "other", "other")
    assert (message.exchange, message.priority) == ("", 3)
    assert (message.task_args, message.task_kwargs) == ((1,), {"a": "é"})
    assert message.virtual_host == VirtualHost("amqp://guest:guest@localhost:5672/")
    formatter = message.formatter
    assert json.loads(formatter.body()) == {"args": [1], "kwargs": {"a": "é"}}
    assert formatter.publish_kwargs() == {
        "exchange": "",
        "routing_key": "other",
        "body": formatter.body(),
        "mandatory": True,
    }
    properties = pika.BasicProperties(**formatter.properties())
    assert properties.headers == {"type": TASK}
    assert (properties.message_id, properties.priority) == (message.uuid, 3)
    assert (properties.type, properties.delivery_mode) == ("django-carrot message", 2)


def test_its_id_is_the_primary_key_of_its_row() -> None:
    message = Message(TASK)
    assert str(message.row.pk) == message.uuid
    assert message.row._state.adding


def test_the_serializer_of_a_subclass_names_its_own_types() -> None:
    class Mine(DefaultMessageSerializer):
        type_header = "job"
        message_type = "mine"
        content_type = "text/json"

    got = Mine(Message(TASK)).properties()
    assert got["headers"] == {"job": TASK}
    assert (got["type"], got["content_type"]) == ("mine", "text/json")


class RefusingChannel:
    """A blocking channel whose broker takes nothing."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def confirm_delivery(self) -> None: ...

    def basic_publish(self, **_: Any) -> None:
        raise self.error


class Connection:
    """A blocking connection that notes how it ends."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        raise pika.exceptions.ConnectionWrongStateError("it is closed")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (pika.exceptions.UnroutableError([]), "no queue is bound to exchange '' with routing key"),
        (pika.exceptions.NackError([]), "its queue may be full"),
        (pika.exceptions.ConnectionBlockedTimeout(), "did not confirm the message: Connection"),
        (pika.exceptions.ChannelClosedByBroker(404, "no exchange"), "no exchange"),
        (OSError("cable"), "cable"),
    ],
    ids=repr,
)
def test_a_message_that_the_broker_has_not_is_told_and_the_connection_closed(
    error: Exception, text: str
) -> None:
    """django-carrot published without a confirm: what the broker did not take was lost."""
    connection: Any = Connection()
    channel: Any = RefusingChannel(error)
    with pytest.raises(BrokerError, match=text):
        Message(TASK).formatter.publish(connection, channel)
    assert connection.closed == 1


def test_a_serializer_made_for_reading_says_that_it_cannot_write() -> None:
    with pytest.raises(ValueError, match="without one to publish"):
        DefaultMessageSerializer().body()


def test_get_task_finds_the_function_that_the_header_names() -> None:
    properties = pika.BasicProperties(headers={"type": TASK})
    assert DefaultMessageSerializer.get_task(properties, b"") is tasks.noop


@pytest.mark.parametrize("headers", [None, {}, {"type": None}, {"type": 5}, {"other": TASK}])
def test_get_task_without_a_usable_header_is_poison(headers: dict[str, Any] | None) -> None:
    with pytest.raises(PoisonMessage, match="no header 'type'"):
        DefaultMessageSerializer.get_task(pika.BasicProperties(headers=headers), b"")


def test_serialize_arguments_reads_a_body() -> None:
    read = DefaultMessageSerializer.serialize_arguments('{"args": [1], "kwargs": {"a": 2}}')
    assert read == ([1], {"a": 2})
    with pytest.raises(PoisonMessage):
        DefaultMessageSerializer.serialize_arguments("nonsense")


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"priority": -1}, "from 0 to 255, not -1"),
        ({"priority": 256}, "from 0 to 255, not 256"),
        ({"priority": 10**100}, "from 0 to 255"),
        ({"priority": True}, "a whole number, not True"),
        ({"priority": 1.0}, "a whole number, not 1.0"),
        ({"priority": "1"}, "a whole number, not '1'"),
        ({"exchange": "x" * 256}, "exchange is longer than 255 bytes"),
        ({"exchange": "x\x00"}, "exchange holds characters that cannot be sent: 'x\\\\x00'"),
        ({"routing_key": "\ud800"}, "routing key holds characters that cannot be sent"),
        ({"task": "a.b\x00"}, "task path holds characters that cannot be sent"),
        ({"task": "a.\udfff"}, "task path holds characters that cannot be sent"),
        ({"routing_key": "ä" * 128}, "routing key is longer than 255 bytes"),
        ({"task": "a." + "x" * 199}, "task path is longer than 200"),
        ({"task_args": ("x" * 1024 * 1024,)}, r"at most 1048576 \(CARROT\['max_message_size'\]\)"),
        ({"task_kwargs": {"a": "x" * 1024 * 1024}}, "at most 1048576"),
        ({"task_args": (object(),)}, "positional arguments cannot be sent as JSON"),
        ({"task_args": ((1, 2),)}, "positional arguments would arrive changed"),
        ({"task_kwargs": {"a": {1}}}, "keyword arguments cannot be sent as JSON"),
        ({"task_kwargs": {5: 1}}, "keyword arguments would arrive changed"),
        ({"virtual_host": VirtualHost("amqp://u:p@elsewhere/")}, "'default' is on amqp://guest@"),
    ],
)
def test_what_could_not_run_is_refused(arguments: dict[str, Any], text: str) -> None:
    values: dict[str, Any] = {"task": TASK, **arguments}
    with pytest.raises(InvalidMessage, match=text):
        Message(**values)


def test_an_unknown_queue_is_refused() -> None:
    with pytest.raises(CarrotConfigException, match="no_such"):
        Message(TASK, queue="no_such")


def test_the_limits_themselves_are_allowed() -> None:
    message = Message(
        TASK, exchange="x" * 255, routing_key="ä" * 127, priority=255, task_args=("x" * 1000,)
    )
    assert message.priority == 255


def test_the_size_is_that_of_the_bytes_and_set_by_the_settings(settings: Any) -> None:
    settings.CARROT = {"max_message_size": 12}
    Message(TASK, task_args=("xxxxxx",))  # ["xxxxxx"] and {} are 12 bytes
    with pytest.raises(InvalidMessage, match="take 13 bytes"):
        Message(TASK, task_args=("xxxxxxx",))
    with pytest.raises(InvalidMessage, match="take 14 bytes"):
        Message(TASK, task_args=("äääö",))


def test_an_equal_virtual_host_is_accepted() -> None:
    host = VirtualHost("amqp://guest:guest@localhost:5672/")
    assert Message(TASK, virtual_host=host).virtual_host == host


def test_a_priority_without_effect_is_warned_of_once(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_log, "_warned_queues", set())
    settings.CARROT = {
        "queues": [
            {"name": "plain"},
            {"name": "ranked", "queue_arguments": {"x-max-priority": 10}},
        ]
    }
    for queue, priority in (("plain", 0), ("ranked", 1), ("plain", 1), ("plain", 2)):
        Message(TASK, queue=queue, priority=priority)
    (record,) = caplog.records
    assert "Queue 'plain' has no x-max-priority" in record.getMessage()


def test_priorities_of_a_quorum_queue_are_told_by_the_brokers_version(
    settings: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_log, "_warned_queues", set())
    settings.CARROT = {"queues": [{"name": "q", "queue_arguments": {"x-queue-type": "quorum"}}]}
    for priority in (0, 4):
        Message(TASK, queue="q", priority=priority)
    assert not caplog.records, "as normal as a message without one"
    for priority in (5, 9):
        Message(TASK, queue="q", priority=priority)
    (record,) = caplog.records
    assert "RabbitMQ before 4.0 does not heed priorities there" in record.getMessage()
    assert "x-max-priority" not in record.getMessage()


def test_later_changes_of_the_callers_arguments_do_not_change_the_message() -> None:
    args, kwargs = [[1]], {"a": [1]}
    message = Message(TASK, task_args=args, task_kwargs=kwargs)
    args[0].append(2)
    kwargs["a"].append(2)
    assert json.loads(message.formatter.body()) == {"args": [[1]], "kwargs": {"a": [1]}}


@pytest.mark.django_db
def test_nothing_is_inserted_when_something_is_refused() -> None:
    for arguments in ({"priority": 256}, {"task_args": (object(),)}, {"queue": "no_such"}):
        values: dict[str, Any] = {"task": TASK, **arguments}
        with pytest.raises(exceptions.CarrotError):
            Message(**values).publish()
    assert not MessageLog.objects.exists()


# resolve_task


def test_resolve_task_finds_a_function_of_a_module_by_path() -> None:
    assert resolve_task(TASK) is tasks.noop
    assert resolve_task(TASK) is tasks.noop


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("", ImportError, "not of the form"),
        ("noop", ImportError, "not of the form module.function"),
        (".noop", ImportError, "Unable to find the module"),
        ("no.such.module.f", ImportError, "Unable to find the module: no.such.module"),
        ("tests.project.tasks.no_such", AttributeError, "function called no_such in the module"),
        ("tests.project.tasks.os", AttributeError, "function called os"),
        ("..x", ImportError, "Unable to find the module"),
    ],
)
def test_resolve_task_says_what_is_missing(path: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        resolve_task(path)


def test_a_path_that_failed_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "tests.project.tasks.comes_later"
    with pytest.raises(AttributeError):
        resolve_task(path)
    monkeypatch.setattr(tasks, "comes_later", tasks.noop, raising=False)
    monkeypatch.setattr(task_paths, "_resolved", {})
    assert resolve_task(path) is tasks.noop


def test_the_public_names_are_those_of_django_carrot() -> None:
    names = {"VirtualHost", "Message", "BaseMessageSerializer", "DefaultMessageSerializer"}
    assert names <= set(objects.__all__) <= set(vars(objects))
