# SPDX-License-Identifier: Apache-2.0
"""The setting ``CARROT``: defaults, and every kind of mistake told at once, with its remedy."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.channel import Channel

import carrot_twisted
from carrot_twisted import conf, topology
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog
from carrot_twisted.virtual_host import VirtualHost

SECRET = "s3cr3t-Wort"


def problems(settings: Any, value: Any) -> dict[str, str]:
    """Message and hint of each problem by its number; fails if two have the same number."""
    settings.CARROT = value
    found = conf.problems()
    by_id = {p.id.removeprefix("carrot_twisted."): f"{p.message} {p.hint}" for p in found}
    assert len(by_id) == len(found), found
    return by_id


def test_without_the_setting_there_is_one_queue_on_this_machine(settings: Any) -> None:
    settings.CARROT = {}  # Django tells of this change, but not of the next.
    del settings.CARROT
    value = conf.current()
    assert list(value.queues) == ["default"]
    assert value.default_broker == VirtualHost("amqp://guest:guest@localhost:5672/")
    assert value.default_broker == VirtualHost(carrot_twisted.DEFAULT_BROKER)
    assert value.task_modules == ()
    assert value.monitor_authentication == ()


def test_defaults_are_those_of_the_dictionary(settings: Any) -> None:
    settings.CARROT = {}
    value = conf.current()
    for key, default in conf.DEFAULTS.items():
        if isinstance(default, int | float):
            assert getattr(value, key) == default
    queue = value.queue("default")
    assert queue == conf.QueueSettings(
        name="default",
        host=value.default_broker,
        concurrency=1,
        consumable=True,
        durable=True,
        queue_arguments={},
        exchange_arguments={},
        consumer_class="carrot_twisted.consumer.Consumer",
        prefetch=None,
        signing=False,
    )


def test_every_value_can_be_set(settings: Any) -> None:
    settings.CARROT = {
        "default_broker": {"host": "one", "username": "u", "password": "p", "secure": True},
        "queues": (
            {
                "name": "mail",
                "host": "amqp://u:p@two/v",
                "concurrency": 3,
                "consumable": False,
                "durable": False,
                "queue_arguments": {"x-max-priority": 10},
                "exchange_arguments": {"exchange_type": "topic"},
                "consumer_class": "app.consumers.Mail",
                "prefetch": 7,
                "signing": "publish",
            },
            {"name": "rest", "prefetch": "auto", "queue_arguments": None},
        ),
        "task_modules": ("app.tasks", "other"),
        "max_message_size": 1,
        "max_result_size": 2,
        "max_log_size": 3,
        "shutdown_timeout": 4,
        "ack_deadline": 5.5,
        "heartbeat": 7,
        "lease": 0.5,
        "max_crashes": 6,
        "monitor_authentication": ("app.views.guarded",),
        "signing": True,
        "retention": {"COMPLETED": 0.5, "FAILED": 90, "CANCELLED": None},
    }
    value = conf.current()
    mail, rest = value.queues.values()
    assert mail == conf.QueueSettings(
        name="mail",
        host=VirtualHost("amqp://u:p@two/v"),
        concurrency=3,
        consumable=False,
        durable=False,
        queue_arguments={"x-max-priority": 10},
        exchange_arguments={"exchange_type": "topic"},
        consumer_class="app.consumers.Mail",
        prefetch=7,
        signing="publish",
    )
    assert (value.signing, rest.signing) == (True, True)
    assert rest.host == value.default_broker == VirtualHost("amqps://u:p@one/")
    assert (rest.prefetch, rest.queue_arguments) == (None, {})
    assert value.task_modules == ("app.tasks", "other")
    assert (value.max_message_size, value.max_result_size, value.max_log_size) == (1, 2, 3)
    assert (value.shutdown_timeout, value.ack_deadline, value.lease) == (4.0, 5.5, 0.5)
    assert (value.max_crashes, value.heartbeat) == (6, 7)
    assert value.registered_modules == ("carrot_twisted.helper_tasks", "app.tasks", "other")
    assert value.monitor_authentication == ("app.views.guarded",)
    assert value.retention == {"COMPLETED": timedelta(hours=12), "FAILED": timedelta(days=90)}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({}, {"COMPLETED": 3, "CANCELLED": 3}),
        ({"FAILED": 7}, {"COMPLETED": 3, "FAILED": 7, "CANCELLED": 3}),
        ({"COMPLETED": None}, {"CANCELLED": 3}),
        ({"COMPLETED": 36_500}, {"COMPLETED": 36_500, "CANCELLED": 3}),
        (None, {}),
    ],
    ids=repr,
)
def test_rows_are_kept_for_days_by_final_state(
    settings: Any, value: Any, wanted: dict[str, int]
) -> None:
    """A state that is not named keeps its default; None switches it off as a whole."""
    settings.CARROT = {"retention": value}
    got = conf.current().retention
    assert got == {state: timedelta(days=days) for state, days in wanted.items()}


def test_the_states_that_can_be_kept_are_the_final_ones() -> None:
    assert set(conf.DEFAULTS["retention"]) == set(MessageLog.FINAL)


def test_a_virtual_host_object_is_a_broker_too(settings: Any) -> None:
    host = VirtualHost("amqp://u:p@h/v")
    settings.CARROT = {"default_broker": host, "queues": [{"name": "a", "host": host}]}
    assert conf.current().queue("a").host == conf.current().default_broker == host


def test_queues_keep_their_order(settings: Any) -> None:
    settings.CARROT = {"queues": [{"name": name} for name in "cab"]}
    assert list(conf.current().queues) == ["c", "a", "b"]


@pytest.mark.parametrize("name", [None, "", "default"])
def test_without_a_name_the_default_queue_is_meant(name: str | None) -> None:
    assert conf.current().queue(name).name == "default"


def test_an_unknown_queue_is_told_with_the_known_ones() -> None:
    with pytest.raises(
        CarrotConfigException,
        match=r"Cannot find queue called mail in settings\.CARROT .* default, other\.",
    ):
        conf.current().queue("mail")


def test_a_changed_setting_is_read_anew_and_an_unchanged_one_is_not(settings: Any) -> None:
    before = conf.current()
    settings.DEBUG = not settings.DEBUG
    assert conf.current() is before
    settings.CARROT = {"queues": [{"name": "new"}]}
    assert list(conf.current().queues) == ["new"]
    settings.CARROT = {}
    assert list(conf.current().queues) == ["default"]


QUEUE = {"name": "q"}
MISTAKES: dict[str, tuple[Any, str, str]] = {
    # what: (setting, number, a text of message and hint)
    "no dictionary": (["default"], "E001", "settings.CARROT is not a dictionary. Write CARROT ="),
    "none": (None, "E001", "not a dictionary"),
    "misspelt key": ({"task_module": []}, "E002", "Did you mean 'task_modules'?"),
    "unknown key": ({"frobnicate": 1}, "E002", "unknown key 'frobnicate'. Known keys: default_b"),
    "key that is no text": ({5: 1}, "E002", "unknown key 5"),
    "misspelt queue key": (
        {"queues": [QUEUE | {"concurency": 3}]},
        "E002",
        "CARROT['queues'][0] has an unknown key 'concurency'. Did you mean 'concurrency'?",
    ),
    "broker of another scheme": ({"default_broker": "http://h"}, "E003", "starts with amqp://"),
    "broker a number": ({"default_broker": 5}, "E003", "CARROT['default_broker']"),
    "broker None": ({"default_broker": None}, "E003", "CARROT['default_broker']"),
    "broker with an unknown key": ({"default_broker": {"hots": "h"}}, "E003", "hots"),
    "broker with a port that is no number": ({"default_broker": {"port": "x"}}, "E003", "port"),
    "broker with a port of text": ({"default_broker": {"port": "5672"}}, "E003", "port"),
    "broker with a password that is no text": (
        {"default_broker": {"password": 12345}},
        "E003",
        "password",
    ),
    "broker with a host that is no text": ({"default_broker": {"host": None}}, "E003", "host"),
    "broker with a name that is no text": ({"default_broker": {"name": 5}}, "E003", "name"),
    "file that is no path": ({"default_broker": {"ca_file": 5}}, "E003", "ca_file is of type int"),
    "file without TLS": ({"default_broker": {"ca_file": "a"}}, "E003", "for TLS only"),
    "host of a queue": ({"queues": [QUEUE | {"host": "h"}]}, "E003", "Queue 'q' in CARROT["),
    "queue that is no dictionary": ({"queues": ["q"]}, "E004", "CARROT['queues'][0] is not a dict"),
    "queue without a name": ({"queues": [{}]}, "E004", "CARROT['queues'][0] has no usable name"),
    "empty name": ({"queues": [{"name": ""}]}, "E004", "1 to 255 bytes"),
    "name with a line end": ({"queues": [{"name": "a\nb"}]}, "E004", "without line ends"),
    "name that has no bytes": ({"queues": [{"name": "\ud800"}]}, "E004", "without line ends"),
    "long name": ({"queues": [{"name": "ä" * 128}]}, "E004", "1 to 255 bytes"),
    "queue named twice": ({"queues": [QUEUE, QUEUE]}, "E005", "'q' twice"),
    "queues no list": ({"queues": {"q": {}}}, "E006", "a list of dictionaries"),
    "queues a text": ({"queues": "default"}, "E006", "a list of dictionaries"),
    "stream": (
        {"queues": [QUEUE | {"queue_arguments": {"x-queue-type": "stream"}}]},
        "E006",
        "has x-queue-type 'stream'. It must be classic or quorum.",
    ),
    "quorum queue that is not durable": (
        {"queues": [QUEUE | {"queue_arguments": {"x-queue-type": "quorum"}, "durable": False}]},
        "E006",
        "Queue 'q' in CARROT['queues'] is a quorum queue and has 'durable': False.",
    ),
    "quorum queue with levels of priority": (
        {"queues": [QUEUE | {"queue_arguments": {"x-queue-type": "quorum", "x-max-priority": 5}}]},
        "E006",
        "has x-max-priority in its 'queue_arguments'. RabbitMQ refuses that. Leave it out",
    ),
    "time limit of nothing": ({"time_limit": 0}, "E006", "above 0, or None for no limit"),
    "time limit a text": ({"time_limit": "30"}, "E006", "above 0, or None for no limit"),
    "modules a text": ({"task_modules": "app.tasks"}, "E006", "a list of module names"),
    "modules no names": ({"task_modules": ["app/tasks.py"]}, "E006", "a list of module names"),
    "decorators a text": ({"monitor_authentication": "app.f"}, "E006", "a list of dotted paths"),
    "decorators no paths": ({"monitor_authentication": [len]}, "E006", "a list of dotted paths"),
    "retention a number": ({"retention": 3}, "E006", "Write {'COMPLETED': days, …}, or None to"),
    "retention of no state": ({"retention": {"COMPLETE": 3}}, "E002", "mean 'COMPLETED'?"),
    "retention of a state that is not final": (
        {"retention": {"PUBLISHED": 3}},
        "E002",
        "CARROT['retention'] has an unknown key 'PUBLISHED'.",
    ),
}
OUT_OF_RANGE: dict[str, list[Any]] = {
    "max_message_size": [0, -1, 1.5, "1", None, True],
    "max_result_size": [0],
    "max_log_size": [0],
    "max_crashes": [0, False],
    "shutdown_timeout": [0, -1.0, "25", None, True, float("nan")],
    "ack_deadline": [0],
    "lease": [0, float("nan"), float("inf"), 1e300, 10**400],
    "heartbeat": [0, 301, 2.5, True, "30"],
    "signing": [0, 1, "yes", None],
}
for _key, _values in OUT_OF_RANGE.items():
    for _value in _values:
        MISTAKES[f"{_key} {_value!r}"] = ({_key: _value}, "E006", f"CARROT['{_key}']")
for _value in (0, -1, "3", True, float("nan"), float("inf"), 36_501):
    MISTAKES[f"retention {_value!r}"] = (
        {"retention": {"FAILED": _value}},
        "E006",
        "CARROT['retention']['FAILED']",
    )
WRONG_IN_A_QUEUE: dict[str, list[Any]] = {
    "concurrency": [0, -1, 1.5, "4", None, True],
    "async_concurrency": [0, 1.5, "4", None, True],
    "consumable": [1, "yes", None],
    "durable": [0, None],
    "queue_arguments": [[], "x", {5: 1}, {"x-a": {1, 2}}, {"x-a": 2**64}, {"x-a": object()}],
    "exchange_arguments": [[], {None: 1}],
    "consumer_class": ["", "no path", 5, None],
    "prefetch": [0, 65536, "many", 1.5, None, True],
    "signing": [0, 1, "yes", []],
}
for _key, _values in WRONG_IN_A_QUEUE.items():
    for _value in _values:
        MISTAKES[f"queue's {_key} {_value!r}"] = (
            {"queues": [QUEUE | {_key: _value}]},
            "E006",
            f"Queue 'q' in CARROT['queues']: {_key!r}",
        )


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_told_with_its_number_and_what_to_do(settings: Any, what: str) -> None:
    value, number, text = MISTAKES[what]
    found = problems(settings, value)
    assert found.keys() == {number}
    assert text in found[number]
    settings.CARROT = value
    with pytest.raises(CarrotConfigException, match=f"carrot_twisted.{number}: "):
        conf.current()


def test_all_mistakes_are_told_at_once(settings: Any) -> None:
    value = {
        "default_broker": 5,
        "frobnicate": 1,
        "lease": -1,
        "queues": [5, {"name": "a"}, {"name": "a"}],
    }
    assert problems(settings, value).keys() == {"E002", "E003", "E004", "E005", "E006"}
    with pytest.raises(CarrotConfigException) as caught:
        conf.current()
    assert len(str(caught.value).splitlines()) == 5


def test_each_queue_tells_its_own_mistakes(settings: Any) -> None:
    settings.CARROT = {
        "queues": [{"name": "a", "concurrency": 0, "durable": 1}, {"name": "b", "prefetch": 0}]
    }
    told = [p.message for p in conf.problems()]
    assert [message.partition(" in ")[0] for message in told] == [
        "Queue 'a'",
        "Queue 'a'",
        "Queue 'b'",
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"default_broker": f"http://u:{SECRET}@h"},
        {"default_broker": f"amqp://u:{SECRET}@h:x/"},
        {"default_broker": {"password": SECRET, "hots": "h"}},
        {"default_broker": {"password": SECRET, "port": "x"}},
        {"default_broker": [f"amqp://u:{SECRET}@h/"]},
        {"queues": {"default": {"host": f"amqp://u:{SECRET}@h/"}}},
        {"queues": f"amqp://u:{SECRET}@h/"},
        {"queues": [f"amqp://u:{SECRET}@h/"]},
        {"queues": [{"name": "q", "host": f"http://u:{SECRET}@h"}]},
        {"queues": [{"name": "q", "consumer_class": f"amqp://u:{SECRET}@h/"}]},
        [f"amqp://u:{SECRET}@h/"],
        f"amqp://u:{SECRET}@h/",
    ],
    ids=lambda value: repr(value).replace(SECRET, "…"),
)
def test_no_mistake_brings_a_password_to_light(settings: Any, value: Any) -> None:
    """The texts go to terminals and logs; a URL is easily put into the wrong place."""
    told = problems(settings, value)
    assert told
    assert SECRET not in str(told)


def test_settings_never_show_a_password(settings: Any) -> None:
    settings.CARROT = {"default_broker": f"amqp://u:{SECRET}@h/", "queues": [{"name": "q"}]}
    assert SECRET not in repr(conf.current())
    assert "amqp://u@h" in repr(conf.current())


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary()
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
guesses = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(conf.DEFAULTS, anything),
        "queues": anything
        | st.lists(
            st.fixed_dictionaries({}, optional=dict.fromkeys(conf.QUEUE_DEFAULTS, anything))
        ),
    },
)


@given(anything | guesses)
def test_whatever_the_setting_is_it_is_read_or_its_mistakes_are_told(value: Any) -> None:
    reader = conf._Reader()
    read = reader.read(value)
    assert isinstance(read, conf.CarrotSettings)
    for problem in reader.problems:
        assert problem.id
        assert problem.message.endswith(".")
        assert problem.hint


@pytest.mark.parametrize(
    "arguments",
    [{"exchange_type": "topic"}, {"alternate-exchange": "ae"}, {"type": "topic"}, {"durable": 5}],
)
def test_what_the_setting_accepts_pika_accepts_as_a_declaration(
    settings: Any, arguments: dict[str, Any]
) -> None:
    """A TypeError on the way to the broker would cost the connection, again and again."""
    settings.CARROT = {
        "queues": [QUEUE | {"exchange_arguments": arguments, "queue_arguments": arguments}]
    }
    if conf.problems():
        return
    for step in topology.work_queue(conf.current().queue("q")):
        signature = inspect.signature(getattr(Channel, step.method))
        signature.bind(None, **step.arguments, callback=None)
