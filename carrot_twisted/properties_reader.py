# SPDX-License-Identifier: Apache-2.0
"""Reads a message's properties, in half of the time that pika takes for them.

They are the largest part of what reading a message costs. So the usual kind is read here: texts in
UTF-8, whole numbers, true and false. Where anything else comes pika reads all of it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pika
from pika.compat import long

if TYPE_CHECKING:
    from collections.abc import Callable

_unsigned_32 = struct.Struct(">L").unpack_from
_signed_32 = struct.Struct(">i").unpack_from
_signed_64 = struct.Struct(">q").unpack_from
_unsigned_64 = struct.Struct(">Q").unpack_from

#: The letters that tell of which type a header's value is, as numbers.
_TEXT, _BOOL, _INT, _LONG = b"StIl"

#: A message that has none.
_NOTHING: dict[str, Any] = vars(pika.BasicProperties())
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _MORE_FLAGS = 1 << 15, 1 << 14, 1 << 13, 1
#: What follows the headers, in this order: flag, name, and bytes; 0: a text, as long as it says.
_FURTHER = (
    (1 << 12, "delivery_mode", 1),
    (1 << 11, "priority", 1),
    (1 << 10, "correlation_id", 0),
    (1 << 9, "reply_to", 0),
    (1 << 8, "expiration", 0),
    (1 << 7, "message_id", 0),
    (1 << 6, "timestamp", 8),
    (1 << 5, "type", 0),
    (1 << 4, "user_id", 0),
    (1 << 3, "app_id", 0),
    (1 << 2, "cluster_id", 0),
)
#: Those of them that a message has, by its flags: there are few sorts of messages.
_further_of: dict[int, tuple[tuple[str, int], ...]] = {}


#: Bytes of headers, or properties, that are worth to be kept for the next message.
MAX_KEPT = 500
#: Characters of a message id that is a UUID.
_ID_SIZE = 36
#: Of what was read last, by its length: what is before and after the message id, where that is, and
#: the properties. Messages of one task differ in nothing else.
_last: dict[int, tuple[bytes, bytes, int, dict[str, Any]]] = {}

_new = pika.BasicProperties.__new__


class _Unusual(Exception):
    """pika is to read this."""


def read_properties(encoded: bytes) -> pika.BasicProperties:
    """The properties of a message; none of them if pika cannot read them all.

    Args:
        encoded: as they come: flags, and what these say that there is.
    """
    last = _last.get(len(encoded))
    if last is not None and encoded.startswith(last[0]) and encoded.endswith(last[1]):
        found = _copied(last[3])
        at = last[2]
        try:
            found["message_id"] = encoded[at : at + _ID_SIZE].decode()
        except UnicodeDecodeError:
            return _pikas(encoded)
    else:
        try:
            found = _usual(encoded)
        except Exception:
            return _pikas(encoded)
    properties: pika.BasicProperties = _new(pika.BasicProperties)
    properties.__dict__ = found
    return properties


def _pikas(encoded: bytes) -> pika.BasicProperties:
    properties = pika.BasicProperties()
    try:
        properties.decode(encoded)
    except Exception:
        # Another one: it has begun to fill that.
        return pika.BasicProperties()
    return properties


def _usual(encoded: bytes) -> dict[str, Any]:
    """All properties, by name.

    Raises:
        _Unusual, IndexError, UnicodeDecodeError, struct.error: they are not of the usual kind.
    """
    found = _NOTHING.copy()
    flags = encoded[0] << 8 | encoded[1]
    at = 2
    if flags & _CONTENT_TYPE:
        start = at + 1
        at = start + encoded[at]
        found["content_type"] = encoded[start:at].decode()
    if flags & _CONTENT_ENCODING:
        start = at + 1
        at = start + encoded[at]
        found["content_encoding"] = encoded[start:at].decode()
    if flags & _HEADERS:
        start = at + 4
        at = start + _unsigned_32(encoded, at)[0]
        table = encoded[start:at]
        found["headers"] = dict(_table(table)) if len(table) <= MAX_KEPT else _read_table(table)
    further = _further_of.get(flags)
    if further is None:
        further = tuple((name, size) for flag, name, size in _FURTHER if flags & flag)
        _further_of[flags] = further
    id_at = 0
    for name, size in further:
        if not size:
            start = at + 1
            at = start + encoded[at]
            found[name] = encoded[start:at].decode()
            if name == "message_id":
                id_at = start
        elif size == 1:
            found[name] = encoded[at]
            at += 1
        else:
            (found[name],) = _unsigned_64(encoded, at)
            at += 8
    if at != len(encoded) or flags & _MORE_FLAGS:
        # Something is shorter than it says, or is left over.
        raise _Unusual
    if id_at and encoded[id_at - 1] == _ID_SIZE and at <= MAX_KEPT:
        # With the length of the id, and without the id.
        _last[at] = (encoded[:id_at], encoded[id_at + _ID_SIZE :], id_at, _copied(found))
    return found


def _copied(found: dict[str, Any]) -> dict[str, Any]:
    """Who changes what was read, changes no other message."""
    copy = found.copy()
    headers = found["headers"]
    if headers is not None:
        copy["headers"] = headers.copy()
    return copy


def _read_table(encoded: bytes) -> dict[str, Any]:
    table: dict[str, Any] = {}
    at, end = 0, len(encoded)
    while at < end:
        start = at + 1
        at = start + encoded[at]
        name = encoded[start:at].decode()
        kind = encoded[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _unsigned_32(encoded, at + 1)[0]
            table[name] = encoded[start:at].decode()
        elif kind == _INT:
            (table[name],) = _signed_32(encoded, at + 1)
            at += 5
        elif kind == _LONG:
            # pika writes this class of its own as it came.
            table[name] = long(_signed_64(encoded, at + 1)[0])
            at += 9
        elif kind == _BOOL:
            table[name] = encoded[at + 1] != 0
            at += 2
        else:
            raise _Unusual
    if at != end:
        raise _Unusual
    return table


#: The same for what has just been read: many messages have the same headers. Not to be changed.
_table: Callable[[bytes], dict[str, Any]] = lru_cache(maxsize=1000)(_read_table)
