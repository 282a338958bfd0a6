# SPDX-License-Identifier: Apache-2.0
"""Copies of messages, in retry queues, archives and dead-letter queues: what they keep, and say.

Who makes such a copy, who moves it on and who shows it agree here.
"""

from __future__ import annotations

import re
from typing import Any

import pika

#: The queue that a message was in.
QUEUE_HEADER = "x-carrot-queue"
#: Where it was published to at first, and with which key.
EXCHANGE_HEADER = "x-carrot-exchange"
ROUTING_KEY_HEADER = "x-carrot-routing-key"
#: Why it is here.
REASON_HEADER = "x-carrot-reason"
EXCEPTION_HEADER = "x-carrot-exception"
TRACEBACK_HEADER = "x-carrot-traceback"
FIRST_FAILURE_HEADER = "x-carrot-first-failure"
LAST_FAILURE_HEADER = "x-carrot-last-failure"
HOST_HEADER = "x-carrot-host"
#: Properties that it had.
USER_HEADER = "x-carrot-user-id"
EXPIRATION_HEADER = "x-carrot-expiration"
#: Properties that it keeps. Not user_id, which the broker checks against our own, and not
#: expiration: the copy would vanish.
COPIED = (
    "content_type",
    "content_encoding",
    "priority",
    "correlation_id",
    "reply_to",
    "message_id",
    "timestamp",
    "type",
    "app_id",
)
#: Headers by which RabbitMQ routes to further queues: a dead letter that names the queue that it
#: comes from would be back there at once, and be doubled each time.
_COPIES = ("CC", "BCC")
#: Where a message has been before. RabbitMQ before 4.0 would take a copy of these for a cycle, and
#: drop the message.
_HISTORY = ("x-death", "x-first-death", "x-last-death")
#: What brokers count in a message's headers each time they deliver it.
_COUNTS = re.compile(r"x-(delivery|acquired)-count")


def kept_headers(properties: pika.BasicProperties) -> dict[str, Any]:
    """Headers of a message that a copy of it may have."""
    return {
        key: value
        for key, value in (properties.headers or {}).items()
        if not _is_routing(key) and can_be_sent(headers={key: value})
    }


def _is_routing(key: str | bytes) -> bool:
    # A name that is no UTF-8 stays bytes.
    return isinstance(key, str) and (key in _COPIES or key.startswith(_HISTORY))


def can_be_sent(**properties: Any) -> bool:
    """Whether pika can write these: it reads some values, such as very large floats, only."""
    try:
        pika.BasicProperties(**properties).encode()
    except Exception:
        return False
    return True


def is_count(header: object) -> bool:
    """Whether a header is the broker's own, of the deliveries of this very message."""
    return _COUNTS.fullmatch(str(header)) is not None
