# SPDX-License-Identifier: Apache-2.0
"""Spans of OpenTelemetry from whoever publishes a task to the task, where that is installed.

The context travels in headers of the message, ``traceparent`` and ``tracestate`` as the W3C has
them, and nowhere else: the row does not know it. So a message that is made of the row alone, by a
relay that found it in the outbox or for another attempt, has none, and its span begins a trace of
its own. Each span has the row's key as ``messaging.message.id``, by which both are found.

Nothing that goes wrong in here keeps a task from being published or run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from carrot_twisted import __version__, outcomes, signals
from carrot_twisted.outcomes import Kind

try:
    from opentelemetry import context, trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    installed = False
else:
    installed = True
    # Baggage is not carried: it may hold anything, and a broker's users could read it.
    _propagator = TraceContextTextMapPropagator()
    _tracer = trace.get_tracer("carrot_twisted", __version__)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.outcomes import Result

_logger = logging.getLogger("carrot_twisted.tracing")

#: Headers of a message, which are a trace's.
HEADERS = ("traceparent", "tracestate")
#: Characters of such a header; longer ones are somebody's mistake, or worse.
MAX_HEADER = 1024
MAX_DESCRIPTION = 200
#: Spans of runs that go on, by row and token. A run may end in another thread than it has begun in.
_running: dict[tuple[UUID, int], Any] = {}


def carry(rows: Sequence[Any]) -> None:
    """Tell that these rows are published, in a span, and give them what their messages carry.

    Args:
        rows: MessageLogs that are not yet inserted; all of them get the same.
    """
    if not installed or not rows:
        return
    try:
        single = len(rows) == 1
        first = rows[0]
        about = _about(first.queue, "publish", "send")
        if single:
            about |= {"messaging.message.id": str(first.pk), "carrot.task": first.task}
        else:
            about["messaging.batch.message_count"] = len(rows)
        name = f"publish {first.task if single else first.queue}"
        with _tracer.start_as_current_span(name, kind=SpanKind.PRODUCER, attributes=about):
            carrier: dict[str, str] = {}
            _propagator.inject(carrier)
        if carrier:
            for row in rows:
                row.carrier = carrier
    except Exception:
        _logger.exception("Publishing is not traced")


def listen() -> None:
    """Have a span around each task that this process runs."""
    if installed:
        signals.task_started.connect(_started, dispatch_uid=__name__)
        signals.task_finished.connect(_finished, dispatch_uid=__name__)


def _started(run: Any, **_: Any) -> None:
    """In the context of the run: what the task does is below its span."""
    span = _span_of(run)
    _running[run.uuid, run.token] = span
    # Never detached: the context ends with the run.
    context.attach(trace.set_span_in_context(span, context.Context()))


def _finished(run: Any, result: Result, **_: Any) -> None:
    span = _running.pop((run.uuid, run.token), None)
    if span is None:
        # There was nothing to call.
        span = _span_of(run, start_time=int(result.started * 1e9))
    span.set_attribute("carrot.outcome", result.kind.name.lower())
    if result.exception is not None:
        span.add_event(
            "exception",
            {
                "exception.message": result.exception,
                "exception.stacktrace": result.traceback or "",
            },
        )
        if result.kind is Kind.FAILED:
            text = outcomes.one_line(result.exception, MAX_DESCRIPTION)
            span.set_status(Status(StatusCode.ERROR, text))
    span.end(end_time=int(result.ended * 1e9))


def _span_of(run: Any, **options: Any) -> Any:
    about = _about(run.queue, "process", "process")
    about |= {
        "messaging.message.id": str(run.uuid),
        "carrot.task": run.task,
        "carrot.attempt": run.attempt,
    }
    parent = _propagator.extract(_carried(run.headers or {}), context.Context())
    return _tracer.start_span(
        f"process {run.task}",
        context=parent,
        kind=SpanKind.CONSUMER,
        attributes=about,
        # Told by what the run has come to.
        record_exception=False,
        set_status_on_exception=False,
        **options,
    )


def _carried(headers: Mapping[str, Any]) -> dict[str, str]:
    """What a message carries of a trace. Anybody may have written it; OpenTelemetry checks it."""
    found = {name: headers.get(name) for name in HEADERS}
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, str) and len(value) <= MAX_HEADER
    }


def _about(queue: str, name: str, kind: str) -> dict[str, Any]:
    """Attributes by OpenTelemetry's conventions for messaging."""
    return {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": queue,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }
