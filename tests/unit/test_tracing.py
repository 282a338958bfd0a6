# SPDX-License-Identifier: Apache-2.0
"""One trace from whoever publishes a task to what the task does."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from opentelemetry import trace
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
)

from carrot_twisted import execution, outbox, signals, tracing
from carrot_twisted.execution import Limits, Run
from carrot_twisted.flows import chain
from carrot_twisted.models import MessageLog
from carrot_twisted.outcomes import Kind
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.project import flowing, tasks
from tests.unit.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Iterator

    from carrot_twisted.testing import InMemory

pytestmark = pytest.mark.django_db(transaction=True)
TASK = "tests.project.tasks.trace"
FAIL = "tests.project.tasks.fail"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    spans = Spans(monkeypatch)
    tracing.listen()
    yield spans
    for signal in (signals.task_started, signals.task_finished):
        signal.disconnect(dispatch_uid=tracing.__name__)
    assert tracing._running == {}


def headers_of(row: MessageLog) -> dict[str, Any]:
    ((post,),) = outbox.posts([row]).values()
    return dict(post.properties.headers)


def run(headers: Any, task: str = TASK, args: str = "[]") -> Any:
    return execution.execute(
        Run(
            uuid=uuid4(),
            token=1,
            task=task,
            task_args=args,
            content="{}",
            queue="default",
            attempt=2,
            published=0.0,
            header=task,
            headers=headers,
            body=b"{}" if args == "[]" else b'{"args": ' + args.encode() + b"}",
        ),
        Limits(result=1000, log=1000),
    )


def test_the_task_is_a_child_of_the_publishing_and_that_of_what_published(spans: Spans) -> None:
    with spans.tracer.start_as_current_span("request") as request:
        row = publish_message(tasks.trace)
    result = run(headers_of(row))
    assert result.output == f"{request.get_span_context().trace_id:x}"
    publish, outer, process = spans.take()
    assert (publish.name, publish.kind) == (f"publish {TASK}", SpanKind.PRODUCER)
    assert publish.parent is not None
    assert publish.parent.span_id == request.get_span_context().span_id
    assert outer.name == "request"
    assert (process.name, process.kind) == (f"process {TASK}", SpanKind.CONSUMER)
    assert process.parent is not None
    assert format(process.parent.span_id, "016x") in headers_of(row)["traceparent"]
    assert process.parent.is_remote
    assert publish.attributes is not None
    assert publish.attributes["messaging.message.id"] == str(row.pk)
    assert process.attributes is not None
    assert process.attributes["carrot.outcome"] == "completed"
    assert process.attributes["carrot.attempt"] == 2
    assert process.status.status_code is StatusCode.UNSET
    assert not trace.get_current_span().get_span_context().is_valid, "nothing is left behind"


def test_a_task_that_fails_says_so_with_its_traceback(spans: Spans) -> None:
    assert run({}, FAIL, '["on purpose"]').kind is Kind.FAILED
    (span,) = spans.take()
    assert span.parent is None
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "on purpose")
    (event,) = span.events
    assert event.attributes is not None
    assert "in fail" in str(event.attributes["exception.stacktrace"])


def test_so_does_one_that_there_is_not(spans: Spans) -> None:
    assert run({}, "no.such.task").kind is Kind.FAILED
    (span,) = spans.take()
    assert span.status.status_code is StatusCode.ERROR


def test_many_tasks_are_published_in_one_span(spans: Spans) -> None:
    rows = publish_many([create_message(tasks.trace) for _ in range(3)])
    (span,) = spans.take()
    assert span.name == "publish default"
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 3
    assert len({headers_of(row)["traceparent"] for row in rows}) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_relay_sends_what_the_publisher_has_sent(spans: Spans, count: int) -> None:
    """So it is with every message that is made of the row: of a later time, or another attempt."""
    state = TraceState([("vendor", "1")])
    parent = SpanContext(7, 7, is_remote=True, trace_flags=TraceFlags(1), trace_state=state)
    with trace.use_span(NonRecordingSpan(parent)):
        rows = publish_many([create_message(tasks.trace) for _ in range(count)])
    MessageLog.objects.update(relay_at=Now() - timedelta(seconds=60))
    taken = outbox.take_unsent(["default"], 10, "default")
    assert {row.pk for row in taken} == {row.pk for row in rows}
    for row in taken:
        headers = headers_of(row)
        assert headers["traceparent"].startswith(f"00-{7:032x}-")
        assert headers["tracestate"] == "vendor=1"
        assert headers == headers_of(next(one for one in rows if one.pk == row.pk))


def test_what_anybody_has_written_into_the_row_hinders_no_message(spans: Spans) -> None:
    row = publish_message(tasks.trace)
    row.trace = ""
    assert headers_of(row) == {"type": TASK}
    row.trace = "a b c"
    result = run(headers_of(row))
    assert result.kind is Kind.COMPLETED
    assert spans.take()[1].parent is None


def test_a_flow_is_one_trace(spans: Spans, carrot: InMemory) -> None:
    with spans.tracer.start_as_current_span("request") as request:
        flow = chain(flowing.give.options().message(1), flowing.tell).publish()
    carrot.run_pending()
    assert [row.status for row in flow.logs] == ["COMPLETED"] * 2
    published = [span for span in spans.take() if span.kind is SpanKind.PRODUCER]
    assert [span.name for span in published] == [
        f"publish tests.project.flowing.{name}" for name in ("give", "tell")
    ]
    (first, second) = published
    assert first.context.trace_id == request.get_span_context().trace_id
    assert second.parent is not None
    assert second.parent.span_id == first.context.span_id
    assert not trace.get_current_span().get_span_context().is_valid


def test_without_traces_publishing_and_flows_ask_nothing_more(
    carrot: InMemory,
) -> None:
    """The statements are as many as with a trace, but for a flow's look at its last step."""

    def statements() -> int:
        with CaptureQueriesContext(connection) as seen:
            publish_many([create_message(tasks.trace) for _ in range(3)])
            chain(flowing.give.options().message(1), flowing.tell).publish()
            carrot.run_pending()
        return len(seen)

    plain = statements()
    with pytest.MonkeyPatch.context() as patch:
        Spans(patch)
        assert statements() == plain + 1


@pytest.mark.parametrize(
    "headers",
    [None, {"traceparent": 7}, {"traceparent": "nonsense"}, {"traceparent": "00-" + "a" * 5000}],
)
def test_whatever_a_message_carries_the_task_runs(spans: Spans, headers: Any) -> None:
    assert run(headers).kind is Kind.COMPLETED
    (span,) = spans.take()
    assert span.parent is None


def test_what_goes_wrong_keeps_no_task_from_being_published(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)
    row = publish_message(tasks.trace)
    assert headers_of(row) == {"type": TASK}
    assert run({}).kind is Kind.COMPLETED


def test_without_the_package_nothing_is_done(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "installed", False)
    assert publish_message(tasks.trace).trace is None
    assert spans.take() == []


def test_a_process_that_has_set_up_nothing_listens_to_nothing() -> None:
    """So no task pays for signals."""
    before = [len(one.receivers) for one in (signals.task_started, signals.task_finished)]
    tracing.listen()
    assert before == [len(one.receivers) for one in (signals.task_started, signals.task_finished)]
    assert not tracing.is_on()


def test_a_provider_that_cannot_be_loaded_keeps_no_task_from_being_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "no_such_provider")
    assert publish_message(tasks.trace).trace is None


def test_signed_messages_carry_it_under_their_signature(spans: Spans, settings: Any) -> None:
    settings.CARROT = {"signing": True}
    headers = headers_of(publish_message(tasks.trace))
    assert {"type", "traceparent", "x-carrot-signature"} <= set(headers)
