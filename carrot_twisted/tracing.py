# SPDX-License-Identifier: Apache-2.0
"""Spans of OpenTelemetry from whoever publishes to the task, handler or callback that runs.

Where OpenTelemetry is not installed, or the process has no provider of tracers, nothing is done: a
message's headers are not even read (``is_on``).

The context travels in headers of the message, ``traceparent`` and ``tracestate`` as the W3C has
them. A task's row has it, too, where there is one: whoever makes a message of that, a relay or who
publishes it for another attempt, sends the same. A span of a task has the row's key as
``messaging.message.id``.

Nothing that goes wrong in here keeps a message from being published, or a task from being run.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import Context
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
    #: What gives the tracers of a process that has set up none.
    _IDLE = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from carrot_twisted.outcomes import Result
    from carrot_twisted.retry import Failure

_logger = logging.getLogger("carrot_twisted.tracing")

#: Headers of a message, which are a trace's.
HEADERS = ("traceparent", "tracestate")
#: OpenTelemetry's attribute for it.
ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
#: Characters of such a header; longer ones are somebody's mistake, or worse.
MAX_HEADER = 1024
MAX_DESCRIPTION = 200
#: Spans of runs that go on, by row and token. A run may end in another thread than it has begun in.
_running: dict[tuple[UUID, int], Any] = {}


def is_on() -> bool:
    """Whether anybody is told of spans: there is OpenTelemetry, and the process has set it up."""
    try:
        return installed and not isinstance(trace.get_tracer_provider(), _IDLE)
    except Exception:
        # The environment may name one that cannot be loaded.
        _logger.exception("Nothing is traced")
        return False


def carry(rows: Sequence[Any]) -> None:
    """Tell that these rows are published, in a span, and let them keep what their messages carry.

    Args:
        rows: MessageLogs that are not yet inserted; all of them get the same.
    """
    if not rows or not is_on():
        return
    single = len(rows) == 1
    first = rows[0]
    about = _about(first.queue, "publish", "send")
    if single:
        about |= {"messaging.message.id": str(first.pk), "carrot.task": first.task}
    else:
        about["messaging.batch.message_count"] = len(rows)
    carrier = _published(first.task if single else first.queue, about)
    if carrier:
        # The first has no space in it.
        kept = " ".join(carrier[name] for name in HEADERS if name in carrier)
        for row in rows:
            row.trace = kept


def headers_of(kept: str) -> dict[str, str]:
    """The headers of messages whose row has this as its ``trace``."""
    return dict(zip(HEADERS, filter(None, kept.split(" ", 1)), strict=False))


@contextmanager
def below(kept: str | None) -> Iterator[None]:
    """What is published inside is below that which a row's ``trace`` tells of; None: nothing."""
    token = None
    try:
        if kept is not None:
            parent = _propagator.extract(_carried(headers_of(kept)), context.Context())
            token = context.attach(parent)
    except Exception:
        _logger.exception("A trace does not go on")
    try:
        yield
    finally:
        if token is not None:
            context.detach(token)


def carried_by(
    exchange: str, routing_key: str, message_id: str, headers: Mapping[str, Any]
) -> dict[str, Any]:
    """Tell that a message without a row is published, in a span; returns the headers that it gets.

    Args:
        exchange: where to.
        routing_key: with which key.
        message_id: of the message.
        headers: of its publisher; a context that they have is left alone.
    """
    if HEADERS[0] in headers or not is_on():
        return dict(headers)
    destination = ":".join(filter(None, (exchange, routing_key)))
    about = _about(destination, "publish", "send")
    about["messaging.message.id"] = message_id
    if routing_key:
        about[ROUTING_KEY] = routing_key
    # Of routing keys there may be any number: the exchange says which sort of message it is.
    return {**headers, **_published(exchange or routing_key, about)}


def _published(what: str, about: dict[str, Any]) -> dict[str, str]:
    """A span of a publishing; returns its context, as messages carry it."""
    carrier: dict[str, str] = {}
    try:
        with _tracer.start_as_current_span(
            f"publish {what}", kind=SpanKind.PRODUCER, attributes=about
        ):
            _propagator.inject(carrier)
    except Exception:
        _logger.exception("Publishing is not traced")
    return _carried(carrier)


def message_begins(
    handler: str,
    queue: str,
    exchange: str,
    routing_key: str,
    headers: Mapping[str, Any],
    about: Mapping[str, Any],
) -> tuple[Any, Context] | None:
    """A handler or callback is about to be called with a message.

    Args:
        handler: its dotted path.
        queue: that the message is from.
        exchange: that it was published to.
        routing_key: that it was published with.
        headers: of the message.
        about: attributes more.

    Returns:
        A span, which ``message_ends`` ends, and the context to call it in, of nothing else; None if
        that could not be had.
    """
    try:
        parts = (exchange, routing_key, queue if queue != routing_key else "")
        told = _about(":".join(filter(None, parts)), "process", "process")
        told |= {"carrot.handler": handler, **about}
        if routing_key:
            told[ROUTING_KEY] = routing_key
        span = _consumer_span(handler, headers, told)
        within = Context()
        within.run(context.attach, trace.set_span_in_context(span, context.Context()))
    except Exception:
        _logger.exception("A message is not traced")
        return None
    return span, within


def message_ends(
    span: Any, outcome: str, failure: Failure | None, *, failed: bool, seconds: float
) -> None:
    """It has returned or raised.

    Args:
        span: of ``message_begins``.
        outcome: what becomes of the message.
        failure: what it has raised; None: it has returned.
        failed: that is the message's end.
        seconds: when it has ended, since the epoch.
    """
    try:
        span.set_attribute("carrot.outcome", outcome)
        if failure is not None:
            kind = None if failure.error is None else outcomes.exception_class(failure.error)
            _tell_failure(span, failure.exception, failure.traceback, kind, failed)
        span.end(end_time=int(seconds * 1e9))
    except Exception:
        _logger.exception("The end of a message is not traced")


def listen() -> None:
    """Have a span around each task that this process runs."""
    if is_on():
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
        failed = result.kind is Kind.FAILED
        _tell_failure(
            span, result.exception, result.traceback or "", result.exception_class, failed
        )
    span.end(end_time=int(result.ended * 1e9))


def _tell_failure(
    span: Any, exception: str, traceback: str, kind: str | None, failed: bool
) -> None:
    """What a call has raised; if ``failed``, nobody calls again."""
    told = {"exception.message": exception, "exception.stacktrace": traceback}
    if kind is not None:
        told["exception.type"] = kind
    span.add_event("exception", told)
    if failed:
        text = outcomes.one_line(exception, MAX_DESCRIPTION)
        span.set_status(Status(StatusCode.ERROR, text))
        span.set_attribute("error.type", kind or "_OTHER")


def _span_of(run: Any, **options: Any) -> Any:
    about = _about(run.queue, "process", "process")
    about |= {
        "messaging.message.id": str(run.uuid),
        "carrot.task": run.task,
        "carrot.attempt": run.attempt,
    }
    return _consumer_span(run.task, run.headers or {}, about, **options)


def _consumer_span(
    what: str, headers: Mapping[str, Any], about: Mapping[str, Any], **options: Any
) -> Any:
    return _tracer.start_span(
        f"process {what}",
        context=_propagator.extract(_carried(headers), context.Context()),
        kind=SpanKind.CONSUMER,
        attributes=about,
        # Told by what the call has come to.
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


def _about(destination: str, name: str, kind: str) -> dict[str, Any]:
    """Attributes by OpenTelemetry's conventions for messaging.

    Args:
        destination: exchange, routing key and queue, joined by colons, without what is empty or
            there already.
        name: of what is done.
        kind: of operations that that is one of.
    """
    return {
        "messaging.system": "rabbitmq",
        "messaging.destination.name": destination,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
    }
