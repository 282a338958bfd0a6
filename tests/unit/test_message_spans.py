# SPDX-License-Identifier: Apache-2.0
"""One trace from whoever publishes a message to what its handler or callback does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.trace import SpanKind, StatusCode

from carrot_twisted import conf, handlers, outbox, sending, task_logging, tracing
from carrot_twisted.exceptions import Drop, HaltConsumer, Nack, PermanentFailure
from carrot_twisted.interruption import TimedCall
from carrot_twisted.service import message_spans
from carrot_twisted.utilities import publish_message
from tests.project import tasks
from tests.unit.spans import Spans
from tests.unit.test_callback_dispatcher import Desk as CallbackDesk
from tests.unit.test_message_dispatcher import LOCKED
from tests.unit.test_message_dispatcher import Desk as HandlerDesk

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
#: As any publisher writes it.
FOREIGN = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=1"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return Spans(monkeypatch)


def started(desk: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A desk whose threads the test is."""
    monkeypatch.setattr(desk.dispatcher._pool, "start", lambda: None)
    desk.dispatcher.start()
    return desk


def handler_desk(monkeypatch: pytest.MonkeyPatch) -> HandlerDesk:
    monkeypatch.setattr(handlers, "_registry", {})
    result: HandlerDesk = started(HandlerDesk(), monkeypatch)
    return result


@pytest.fixture
def desk(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> HandlerDesk:
    return handler_desk(monkeypatch)


def parent_of(span: ReadableSpan) -> tuple[str, str]:
    assert span.parent is not None
    return f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}"


def about(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return dict(span.attributes)


def test_a_handler_is_a_child_of_whoever_has_published_the_message(
    spans: Spans, desk: HandlerDesk
) -> None:
    current: list[str] = []
    desk.meanwhile = lambda: current.append(
        f"{trace.get_current_span().get_span_context().span_id:016x}"
    )
    desk.deliver(b"12345", headers=FOREIGN, message_id="m-1", correlation_id="c-1")
    desk.deliver(headers={})
    desk.work()
    span, other = spans.take()
    handler = desk.dispatcher._queue.handler
    assert (span.name, span.kind) == (f"process {handler}", SpanKind.CONSUMER)
    assert parent_of(span) == (TRACE_ID, SPAN_ID)
    assert span.context.trace_state["vendor"] == "1"
    assert about(span) == {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": "mail",
        "messaging.rabbitmq.destination.routing_key": "mail",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": "m-1",
        "messaging.message.conversation_id": "c-1",
        "messaging.message.body.size": 5,
        "messaging.rabbitmq.message.delivery_tag": 1,
        "carrot.handler": handler,
        "carrot.attempt": 1,
        "carrot.outcome": "ack",
    }
    known = {value for value in vars(messaging_attributes).values() if isinstance(value, str)}
    assert {name for name in about(span) if not name.startswith("carrot.")} <= known
    assert span.status.status_code is StatusCode.UNSET
    assert current[0] == f"{span.context.span_id:016x}"
    assert other.parent is None, "nothing is left of the message before"
    assert not trace.get_current_span().get_span_context().is_valid


def test_what_a_coroutine_does_is_below_its_span(spans: Spans, desk: HandlerDesk) -> None:
    async def go_on() -> None:
        with spans.tracer.start_as_current_span("inner"):
            await asyncio.sleep(0)

    desk.returned = go_on()
    desk.deliver(headers=FOREIGN)
    desk.work()
    inner, handler = spans.take()
    assert parent_of(inner) == (TRACE_ID, f"{handler.context.span_id:016x}")


def test_one_whose_thread_is_given_up_ends_its_span(spans: Spans, desk: HandlerDesk) -> None:
    """The thread that takes the place of its own tells the end, and that of the handler nothing."""
    desk.deliver(headers=FOREIGN)
    desk.turn()
    (job,) = desk.dispatcher._pool.recall()
    message_spans.begin(job, desk.dispatcher._queue)
    call = TimedCall(job, 1.0, task_logging.Transcript(0), desk.dispatcher._keeper)
    desk.dispatcher._end_stuck(call)
    (span,) = spans.take()
    assert parent_of(span) == (TRACE_ID, SPAN_ID)
    assert about(span)["carrot.outcome"] == "retry"
    assert job.span is None


def test_it_says_where_a_message_comes_from_also_if_that_is_a_copy(
    spans: Spans, desk: HandlerDesk
) -> None:
    headers = {"x-carrot-exchange": "events", "x-carrot-routing-key": "user.new"}
    desk.deliver(headers=headers)
    desk.work()
    (span,) = spans.take()
    assert about(span)["messaging.destination.name"] == "events:user.new:mail"
    assert about(span)["messaging.rabbitmq.destination.routing_key"] == "user.new"


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (ValueError("broken"), "retry", StatusCode.UNSET),
        (PermanentFailure("broken"), "archive", StatusCode.ERROR),
        (LOCKED, "wait", StatusCode.UNSET),
    ],
)
def test_a_handler_that_fails_says_so_with_its_traceback(
    spans: Spans, desk: HandlerDesk, error: Exception, outcome: str, status: StatusCode
) -> None:
    desk.errors[b"bad"] = error
    desk.deliver(b"bad", headers=FOREIGN)
    desk.work()
    (span,) = spans.take()
    assert about(span)["carrot.outcome"] == outcome
    assert span.status.status_code is status
    (event,) = span.events
    assert event.attributes is not None
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    assert event.attributes["exception.type"] == kind
    assert about(span).get("error.type") == (kind if status is StatusCode.ERROR else None)
    assert "in handle" in str(event.attributes["exception.stacktrace"])


def test_the_trace_goes_on_in_retries_and_in_the_archive(spans: Spans, desk: HandlerDesk) -> None:
    desk.errors[b"bad"] = ValueError("no")
    headers: dict[str, Any] = dict(FOREIGN)
    for attempt in (1, 2):
        desk.deliver(b"bad", headers=headers)
        desk.work()
        ((post, settled),) = desk.sent
        desk.sent.clear()
        settled(None)
        headers = dict(post.properties.headers or {})
        (span,) = spans.take()
        assert parent_of(span) == (TRACE_ID, SPAN_ID)
        assert about(span)["carrot.attempt"] == attempt
    assert headers["traceparent"] == FOREIGN["traceparent"]


@pytest.mark.parametrize(
    ("error", "outcome", "failed"),
    [
        (None, "ack", False),
        (Nack(), "requeue", False),
        (Drop("unwanted"), "reject", True),
        (HaltConsumer(exit_code=0), "ack", False),
        (ValueError("broken"), "requeue", True),
    ],
)
def test_so_it_is_with_callbacks(
    spans: Spans,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | None,
    outcome: str,
    failed: bool,
) -> None:
    desk: CallbackDesk = started(CallbackDesk(), monkeypatch)
    if error is not None:
        desk.errors[b"one"] = error
    desk.consumer.result.addErrback(lambda _: None)
    desk.deliver(b"one")
    desk.work()
    (span,) = spans.take()
    assert about(span)["carrot.outcome"] == outcome
    assert (span.status.status_code is StatusCode.ERROR) is failed
    assert len(span.events) == (error is not None)


@pytest.mark.django_db(transaction=True)
def test_what_a_handler_publishes_is_its_child(spans: Spans, desk: HandlerDesk) -> None:
    made: list[Any] = []

    def publish() -> None:
        row = publish_message(tasks.trace)
        ((post,),) = outbox.posts([row]).values()
        host = conf.current().default_broker
        out = sending.outgoing({}, "amq.topic", "user.new", headers={"a": 1}, host=host)
        made[:] = [post.properties.headers, out.properties.headers]

    desk.meanwhile = publish
    desk.deliver(headers=FOREIGN)
    desk.work()
    task, message, handler = spans.take()
    for span, headers in zip((task, message), made, strict=True):
        assert span.kind is SpanKind.PRODUCER
        assert parent_of(span) == (TRACE_ID, f"{handler.context.span_id:016x}")
        assert headers["traceparent"] == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert message.name == "publish amq.topic"
    assert about(message)["messaging.destination.name"] == "amq.topic:user.new"
    assert made[1]["a"] == 1


def test_a_context_that_a_publisher_gives_is_left_alone(spans: Spans) -> None:
    host = conf.current().default_broker
    out = sending.outgoing(b"", "", "mail", headers=FOREIGN, host=host)
    assert (out.properties.headers, spans.take()) == (FOREIGN, [])


@pytest.mark.parametrize("traced", [False, True])
def test_a_thousand_messages_cost_as_many_hand_overs_traced_or_not(
    traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = Spans(monkeypatch) if traced else None
    desk = handler_desk(monkeypatch)
    hand_overs: list[object] = []
    hand_over = desk.clock.callFromThread

    def counted(*call: Any) -> None:
        hand_overs.append(call)
        hand_over(*call)

    monkeypatch.setattr(desk.clock, "callFromThread", counted)
    desk.dispatcher.pace.seconds = 0.0
    for _ in range(1000):
        desk.arrive(b"body", headers=FOREIGN)
    assert desk.work() == 1000
    assert len(hand_overs) == 1
    assert desk.channel.frames == [("ack", 1000, True)]
    assert spans is None or len(spans.take()) == 1000


@pytest.mark.parametrize("installed", [True, False])
def test_a_process_that_has_set_up_nothing_does_nothing(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one function of ours is called for a message, so its headers are not read for it."""
    called: list[str] = []
    for name in ("begin", "end"):
        monkeypatch.setattr(message_spans, name, lambda *_, name=name: called.append(name))
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.setattr(tracing, "installed", installed)
    desk = handler_desk(monkeypatch)
    desk.deliver(headers=FOREIGN)
    desk.work()
    assert (desk.handled, called) == ([b"body"], [])
    host = conf.current().default_broker
    assert sending.outgoing(b"", "", "mail", headers=None, host=host).properties.headers == {}


@pytest.mark.parametrize("part", ["_tracer", "_propagator"])
def test_what_goes_wrong_with_a_trace_does_nothing_to_a_message(
    spans: Spans, desk: HandlerDesk, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, part, None)
    desk.errors[b"bad"] = PermanentFailure("no")
    desk.deliver()
    desk.deliver(b"bad")
    desk.work()
    assert desk.handled == [b"body", b"bad"]
    assert desk.answer() == ["mail.archived"]
    host = conf.current().default_broker
    assert sending.outgoing(b"", "", "mail", headers=None, host=host).properties.headers == {}
