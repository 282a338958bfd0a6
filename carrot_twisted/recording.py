# SPDX-License-Identifier: Apache-2.0
"""A message as a line of JSON, and back: for recordings that people can read.

What JSON has no word for, a message's headers may hold: bytes, times and decimal numbers. They
become objects with one key: ``{"$bytes": "AP8="}``, ``{"$time": "2026-01-31T08:00:00"}``,
``{"$decimal": "1.50"}``.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from carrot_twisted.exceptions import InvalidMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Properties that are recorded. Not user_id, which the broker checks against our own when the
#: message is published again.
PROPERTIES = (
    *("content_type", "content_encoding", "delivery_mode", "priority", "correlation_id"),
    *("reply_to", "expiration", "message_id", "timestamp", "type", "app_id"),
)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One message of a recording."""

    exchange: str
    routing_key: str
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]


def to_line(message: Recorded) -> str:
    """One line, without its end."""
    try:
        body = {"body": message.body.decode()}
    except UnicodeDecodeError:
        body = {"body_base64": base64.b64encode(message.body).decode()}
    value = {
        "exchange": message.exchange,
        "routing_key": message.routing_key,
        **body,
        "headers": _plain(message.headers),
        "properties": {
            key: value for key, value in message.properties.items() if value is not None
        },
    }
    return json.dumps(value)


def from_line(line: str) -> Recorded:
    """The message of a line.

    Raises:
        InvalidMessage: it is none.
    """
    try:
        value = json.loads(line)
        body = value["body"].encode() if "body" in value else _bytes(value["body_base64"])
        properties = value.get("properties", {})
        unknown = set(properties) - set(PROPERTIES)
        if unknown:
            raise ValueError(f"unknown properties {', '.join(sorted(unknown))}")
        headers = _restored(value.get("headers", {}))
        if not isinstance(headers, dict):
            raise ValueError("its headers are no object")
        return Recorded(
            exchange=value["exchange"],
            routing_key=value["routing_key"],
            body=body,
            headers=headers,
            properties=properties,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidMessage(f"no recorded message ({type(error).__name__}: {error})") from None


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {_text(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case bytes() | bytearray():
            return {"$bytes": base64.b64encode(value).decode()}
        case datetime():
            return {"$time": value.isoformat()}
        case Decimal():
            return {"$decimal": str(value)}
    return value


def _text(key: str | bytes) -> str:
    # A name that is no UTF-8 stays bytes.
    return key if isinstance(key, str) else key.decode(errors="replace")


def _restored(value: Any) -> Any:
    match value:
        case {"$bytes": str(text)} if len(value) == 1:
            return _bytes(text)
        case {"$time": str(text)} if len(value) == 1:
            time = datetime.fromisoformat(text)
            # As pika has it.
            return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
        case {"$decimal": str(text)} if len(value) == 1:
            return _decimal(text)
        case dict():
            return {key: _restored(each) for key, each in value.items()}
        case list():
            return [_restored(each) for each in value]
    return value


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"no number: {text!r}") from None


def recorded(
    *, exchange: str, routing_key: str, body: bytes, headers: Mapping[str, Any], properties: object
) -> Recorded:
    """A message that has come, as it is to be recorded."""
    return Recorded(
        exchange=exchange,
        routing_key=routing_key,
        body=body,
        headers=dict(headers),
        properties={name: getattr(properties, name) for name in PROPERTIES},
    )
