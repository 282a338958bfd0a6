# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's spans around the calls of handlers and callbacks.

A message's context is in its headers, and so in those of its copies: each further call has a span
below the same one, that of the publisher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carrot_twisted import tracing
from carrot_twisted.retry import Action
from carrot_twisted.service import copying

if TYPE_CHECKING:
    from contextvars import Context

    from carrot_twisted.handlers import HandlerQueue
    from carrot_twisted.retry import Failure
    from carrot_twisted.service.message_job import Job

#: After these the handler may be called once more, and nothing has come to its end.
NOT_YET = (Action.WAIT, Action.RETRY)


def begin(job: Job, queue: HandlerQueue) -> Context | None:
    """The handler is about to be called; returns the context to do that in. On a worker thread."""
    delivery = job.delivery
    properties = delivery.properties
    exchange, routing_key = copying.origin_of(delivery)
    about: dict[str, Any] = {
        "messaging.message.body.size": len(delivery.body),
        "messaging.rabbitmq.message.delivery_tag": delivery.tag,
        "carrot.attempt": queue.policy.retries(properties.headers) + 1,
    }
    if properties.message_id:
        about["messaging.message.id"] = properties.message_id
    if properties.correlation_id:
        about["messaging.message.conversation_id"] = properties.correlation_id
    begun = tracing.message_begins(
        queue.handler, queue.name, exchange, routing_key, properties.headers or {}, about
    )
    if begun is None:
        return None
    job.span, context = begun
    return context


def end(job: Job, failure: Failure | None) -> None:
    """What is to be done about the message is decided. On a worker thread.

    Args:
        job: the message.
        failure: what went wrong with it, for its row.
    """
    assert job.decision is not None
    span, job.span = job.span, None
    action = job.decision.action
    tracing.message_ends(
        span,
        action.name.lower(),
        job.failure,
        failed=failure is not None and action not in NOT_YET,
        seconds=job.ended,
    )
