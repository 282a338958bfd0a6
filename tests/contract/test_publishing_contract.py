# SPDX-License-Identifier: Apache-2.0
"""One suite for the broker in memory and for RabbitMQ: so the unit tests' fake tells the truth.

What is published and declared here goes through the same calls on pika's asynchronous interface.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pika
import pytest
from pika.adapters.select_connection import IOLoop, SelectConnection
from pika.exceptions import StreamLostError

from carrot_twisted import conf, publisher, topology
from carrot_twisted.declaring import Refusal, declare
from carrot_twisted.outbox import Post
from carrot_twisted.publishing import PublishingSession
from carrot_twisted.testing.memory_broker import MemoryBroker, MemoryConnection
from carrot_twisted.topology import Step
from carrot_twisted.virtual_host import VirtualHost
from tests.processes import as_published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.once

#: Names on a broker that others may use too.
PREFIX = f"contract-{os.getpid()}-"
QUEUES = ("one", "two", "odd")
EXCHANGES = ("bound", "unbound")


class Line(ABC):
    """An open connection, and what a test has to know of the broker at its other end."""

    connection: Any

    @abstractmethod
    def run(self, until: Callable[[], object]) -> None:
        """Let the broker answer until this is true."""

    @abstractmethod
    def messages(self, queue: str) -> list[tuple[Any, bytes]]:
        """Take all messages off a queue: properties and body, in order."""

    @abstractmethod
    def cut(self) -> None:
        """The connection is lost."""

    @abstractmethod
    def close(self) -> None:
        """Leave nothing behind."""

    def declare(self, *steps: Step) -> list[Refusal]:
        done: list[list[Refusal]] = []
        declare(self.connection, steps, done.append)
        self.run(lambda: done)
        assert len(done) == 1
        return done[0]


class InMemory(Line):
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.connection = MemoryConnection(self.broker)

    def run(self, until: Callable[[], object]) -> None:
        self.connection.run()
        assert until()

    def messages(self, queue: str) -> list[tuple[Any, bytes]]:
        return [
            (properties, body) for name, properties, body in self.broker.messages if name == queue
        ]

    def cut(self) -> None:
        self.connection.lose()

    def close(self) -> None:
        self.connection.lose("the test is over")


class Real(Line):
    def __init__(self, url: str, adapter: type[SelectConnection]) -> None:
        self._host = VirtualHost(url)
        self._loop = IOLoop()
        self._closed: list[object] = []
        opened: list[object] = []
        self.connection = adapter(
            self._host.parameters(),
            on_open_callback=opened.append,
            on_open_error_callback=lambda _, reason: self._closed.append(reason),
            on_close_callback=lambda _, reason: self._closed.append(reason),
            custom_ioloop=self._loop,
        )
        self.run(lambda: opened or self._closed)
        assert not self._closed

    def run(self, until: Callable[[], object]) -> None:
        end = time.monotonic() + 20

        def look() -> None:
            if until() or time.monotonic() > end:
                self._loop.stop()
            else:
                self._loop.call_later(0.005, look)

        look()
        if not until():
            self._loop.start()
        assert until()

    def messages(self, queue: str) -> list[tuple[Any, bytes]]:
        client = self._host.blocking_connection
        channel = client.channel()
        result = []
        while True:
            method, properties, body = channel.basic_get(queue, auto_ack=True)
            if method is None:
                break
            result.append((properties, body))
        client.close()
        return result

    def cut(self) -> None:
        self.connection._terminate_stream(StreamLostError("the cable was cut"))
        self.run(lambda: self._closed)

    def close(self) -> None:
        if not self._closed:
            self.connection.close()
            self.run(lambda: self._closed)
        self._loop.close()
        client = self._host.blocking_connection
        channel = client.channel()
        for name in QUEUES:
            channel.queue_delete(PREFIX + name)
        for name in (*QUEUES, *EXCHANGES):
            channel.exchange_delete(PREFIX + name)
        client.close()


ADAPTERS = {"rabbitmq": SelectConnection, "rabbitmq, joined frames": publisher._Connection}


@pytest.fixture(
    params=[
        "memory",
        *(pytest.param(name, marks=pytest.mark.rabbitmq) for name in ADAPTERS),
    ]
)
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    """A connection to each kind of broker."""
    result: Line
    if request.param == "memory":
        result = InMemory()
    else:
        url = request.getfixturevalue("broker_url")
        result = Real(url, ADAPTERS[request.param])
    yield result
    result.close()


def steps_of(queue: str, **options: Any) -> tuple[Step, ...]:
    """The topology of a queue, as the product declares it."""
    settings = conf.current().queue("default")
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    return topology.work_queue(conf.QueueSettings(**values | {"name": PREFIX + queue} | options))


def exchange_step(name: str, kind: str = "direct", passive: bool = False) -> Step:
    arguments = {"exchange": PREFIX + name, "exchange_type": kind, "passive": passive}
    return Step(method="exchange_declare", name=name, arguments=arguments)


def binding(exchange: str, queue: str, key: str) -> Step:
    arguments = {"queue": PREFIX + queue, "exchange": PREFIX + exchange, "routing_key": key}
    return Step(method="queue_bind", name=f"{exchange} to {queue}", arguments=arguments)


def post(
    queue: str = "one", exchange: str = "", key: str | None = None, body: bytes = b"{}"
) -> Post:
    message_id = str(uuid4())
    return Post(
        message_id=message_id,
        token=None,
        exchange=PREFIX + exchange if exchange else "",
        routing_key=key or PREFIX + queue,
        body=body,
        properties=pika.BasicProperties(
            message_id=message_id, delivery_mode=2, headers={"type": "žlutý"}
        ),
        steps=steps_of(queue),
    )


class Desk:
    """A session on a line, with what it told."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.outcomes: dict[str, str | None] = {}
        self.idle = 0
        self.session = PublishingSession(line.connection, self._settled, self._idle)

    def _settled(self, post: Post, error: str | None) -> None:
        assert post.message_id not in self.outcomes, "settled twice"
        self.outcomes[post.message_id] = error

    def _idle(self) -> None:
        assert not self.session.busy
        self.idle += 1

    def publish(self, posts: Sequence[Post]) -> list[str | None]:
        """Publish and wait; what came of each."""
        self.session.publish(posts)
        assert self.session.busy
        self.line.run(lambda: not self.session.busy)
        assert self.idle
        return [self.outcomes[post.message_id] for post in posts]

    def arrived(self, queue: str) -> list[str]:
        return [properties.message_id for properties, _ in self.line.messages(PREFIX + queue)]


@pytest.fixture
def desk(line: Line) -> Desk:
    return Desk(line)


def ids(posts: Sequence[Post]) -> list[str]:
    return [post.message_id for post in posts]


def test_posts_arrive_in_order_and_whole(line: Line, desk: Desk) -> None:
    assert line.declare(*steps_of("one")) == []
    # The last ones need several frames each.
    posts = [post(body=bytes([n]) * n * 997) for n in range(256)]
    assert desk.publish(posts) == [None] * 256
    messages = line.messages(PREFIX + "one")
    assert [body for _, body in messages] == [post.body for post in posts]
    assert [as_published(properties) for properties, _ in messages] == [
        post.properties for post in posts
    ]


def test_posts_that_come_one_by_one_arrive(line: Line, desk: Desk) -> None:
    posts = [post() for _ in range(20)]
    for one in posts:
        assert desk.publish([one]) == [None]
    assert desk.arrived("one") == ids(posts)
    assert desk.idle == 20


def test_missing_queues_are_declared_and_nothing_is_lost_or_doubled(line: Line, desk: Desk) -> None:
    posts = [post(("one", "two")[n % 2]) for n in range(50)]
    assert desk.publish(posts) == [None] * 50
    assert sorted(desk.arrived("one")) == sorted(ids(posts[::2]))
    assert sorted(desk.arrived("two")) == sorted(ids(posts[1::2]))
    # With the exchange of the queue's name, bound to it.
    through = post("one", exchange="one")
    assert desk.publish([through]) == [None]
    assert through.message_id in desk.arrived("one")


def test_each_outcome_is_its_own(line: Line, desk: Desk) -> None:
    assert (
        line.declare(
            *steps_of("one"),
            exchange_step("bound"),
            exchange_step("unbound"),
            binding("bound", "one", "key"),
        )
        == []
    )
    posts = []
    for _ in range(100):
        posts += [
            post(),
            post(exchange="bound", key="key"),
            post(exchange="bound", key="other"),
            post(exchange="unbound"),
            post(exchange="missing"),
        ]
    outcomes = desk.publish(posts)
    assert set(outcomes[0::5]) == set(outcomes[1::5]) == {None}
    for unroutable in (*outcomes[2::5], *outcomes[3::5]):
        assert unroutable is not None
        assert unroutable.startswith("unroutable: NO_ROUTE")
    for missing in outcomes[4::5]:
        assert missing is not None
        assert "NOT_FOUND" in missing
        assert PREFIX + "missing" in missing
    assert sorted(desk.arrived("one")) == sorted(ids(posts[0::5]) + ids(posts[1::5]))
    # Nothing of that has harmed the session.
    assert desk.publish([post()]) == [None]


@pytest.mark.parametrize(
    ("kind", "pattern", "keys"),
    [
        ("direct", "order.paid", ["order.paid"]),
        ("fanout", "", ["order.paid", "order", "", "a.order.paid.b"]),
        ("topic", "order.*", ["order.paid"]),
        ("topic", "#", ["order.paid", "order", "", "a.order.paid.b"]),
        ("topic", "#.paid.#", ["order.paid", "a.order.paid.b"]),
        ("topic", "*.*.paid.#", ["a.order.paid.b"]),
    ],
)
def test_messages_go_where_their_exchange_sends_them(
    line: Line, desk: Desk, kind: str, pattern: str, keys: list[str]
) -> None:
    steps = [*steps_of("one"), exchange_step("bound", kind), binding("bound", "one", pattern)]
    assert line.declare(*steps) == []
    posts = {key: post(exchange="bound") for key in ("order.paid", "order", "", "a.order.paid.b")}
    for key, one in posts.items():
        one.routing_key = key
    outcomes = desk.publish(list(posts.values()))
    assert [key for key, outcome in zip(posts, outcomes, strict=True) if outcome is None] == keys
    assert sorted(desk.arrived("one")) == sorted(posts[key].message_id for key in keys)


def test_declarations_are_repeatable_and_refusals_stop_nothing(line: Line) -> None:
    assert line.declare(*steps_of("odd"), *steps_of("odd")) == []
    other = steps_of("odd", queue_arguments={"x-max-priority": 5})
    refusals = line.declare(
        exchange_step("missing", passive=True), *other, *steps_of("one"), exchange_step("bound")
    )
    assert [(refusal.code, refusal.step.method) for refusal in refusals] == [
        (404, "exchange_declare"),
        (406, "queue_declare"),
    ]
    assert [refusal.exists_differently for refusal in refusals] == [False, True]
    assert PREFIX + "missing" in refusals[0].text
    assert PREFIX + "odd" in refusals[1].text
    # What came after the refused ones is there.
    assert line.declare(exchange_step("bound", passive=True)) == []
    assert line.declare() == []


def test_a_queue_whose_exchange_exists_differently_is_used(line: Line, desk: Desk) -> None:
    assert line.declare(exchange_step("one", kind="fanout")) == []
    one = post()
    assert desk.publish([one]) == [None]
    assert desk.arrived("one") == [one.message_id]


def test_a_lost_connection_settles_every_post_once(line: Line, desk: Desk) -> None:
    assert line.declare(*steps_of("one")) == []
    before = [post() for _ in range(10)]
    assert desk.publish(before) == [None] * 10
    # More than are in flight at once, some for exchanges that must be looked for first.
    posts = [post(exchange="" if n % 10 else "missing") for n in range(1500)]
    desk.session.publish(posts)
    line.cut()
    assert not desk.session.busy
    assert desk.idle == 2
    for one in posts:
        error = desk.outcomes[one.message_id]
        assert error is not None
        assert "cable" in error
