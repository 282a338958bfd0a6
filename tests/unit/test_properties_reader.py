# SPDX-License-Identifier: Apache-2.0
"""A message's properties are what pika reads, whatever they are, and however they are cut."""

from __future__ import annotations

import random
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pika
from pika.compat import long

from carrot_twisted import properties_reader
from carrot_twisted.properties_reader import read_properties

if TYPE_CHECKING:
    import pytest

ALL: dict[str, Any] = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "headers": {"text": "\u00e9", "": "", "int": -5, "long": long(7), "large": 2**40, "no": False},
    "delivery_mode": 2,
    "priority": 255,
    "correlation_id": "c",
    "reply_to": "",
    "expiration": "60000",
    "message_id": "m" * 255,
    "timestamp": 2**63,
    "type": "\u20ac",
    "user_id": "u",
    "app_id": "a",
    "cluster_id": "x",
}
#: Types of values that pika alone reads.
OTHER = {
    "array": [1, "a"],
    "table": {"inner": 1},
    "nothing": None,
    "bytes": b"\xff",
    "time": datetime(2026, 1, 31, tzinfo=UTC),
    "decimal": Decimal("1.5"),
}


def pikas(encoded: bytes) -> dict[str, Any]:
    properties = pika.BasicProperties()
    try:
        properties.decode(encoded)
    except Exception:
        properties = pika.BasicProperties()
    found: dict[str, Any] = vars(properties)
    return found


def encoded_of(**properties: Any) -> bytes:
    return b"".join(pika.BasicProperties(**properties).encode())


def read(encoded: bytes) -> dict[str, Any]:
    found: dict[str, Any] = vars(read_properties(encoded))
    # Their types, too: a long is equal to an int, and written in another way.
    assert repr(found) == repr(pikas(encoded)), encoded
    return found


def test_all_of_them_are_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encoded_of(**ALL)
    assert read(encoded) == ALL
    monkeypatch.delattr(pika.BasicProperties, "decode")
    found = read_properties(encoded)
    assert vars(found) == ALL
    assert b"".join(found.encode()) == encoded, "written again they are the same"


def test_any_selection_of_them_is_what_pika_reads() -> None:
    chance = random.Random(7)
    for _ in range(300):
        names = chance.sample(sorted(ALL), chance.randrange(len(ALL) + 1))
        given = {name: ALL[name] for name in names}
        if chance.random() < 0.5 and "headers" in given:
            given["headers"] = dict(
                chance.sample(sorted({**ALL["headers"], **OTHER}.items(), key=str), 3)
            )
        encoded = encoded_of(**given)
        assert {name: value for name, value in read(encoded).items() if value is not None} == given


def test_cut_or_changed_at_any_place_they_are_what_pika_reads() -> None:
    chance = random.Random(7)
    encoded = encoded_of(**{**ALL, "message_id": "m" * 9})
    for place in range(len(encoded)):
        read(encoded[:place])
        read(encoded[:place] + encoded[place + 1 :])
        for _ in range(5):
            read(encoded[:place] + bytes([chance.randrange(256)]) + encoded[place + 1 :])
    read(encoded + b"\0")
    # Flags that a second word of flags follows.
    read(struct.pack(">HH", 1 << 15 | 1, 0) + b"\1a")


def test_messages_that_differ_in_their_ids_alone_are_what_pika_reads() -> None:
    """What the last one of their length had in common with them is not read again."""
    chance = random.Random(7)
    ids = ["".join(chance.choices("0123456789abcdef-\u00fc", k=34)) for _ in range(20)]
    for one in [*("a" * 36 for _ in range(3)), *(i[: 36 - i.count("\u00fc")] for i in ids)]:
        read(encoded_of(**{**ALL, "message_id": one}))
        read(encoded_of(headers={"a": 1}, message_id=one, app_id="x"))
        read(encoded_of(headers={"b": 1}, message_id=one, app_id="x"))
    encoded = encoded_of(headers={"a": 1}, message_id="a" * 36, app_id="x")
    read(encoded)
    for place in range(len(encoded)):
        for byte in (0, 36, 0x80, chance.randrange(256)):
            read(encoded[:place] + bytes([byte]) + encoded[place + 1 :])
            read(encoded)
    first, second = (read_properties(encoded) for _ in range(2))
    first.headers["a"] = 2
    assert second.headers == read_properties(encoded).headers == {"a": 1}


def test_who_changes_them_changes_no_others() -> None:
    encoded = encoded_of(headers={"a": 1})
    first = read_properties(encoded)
    first.headers["a"] = 2
    first.message_id = "mine"
    assert vars(read_properties(encoded)) == pikas(encoded)
    assert vars(read_properties(b"\0\0")) == vars(pika.BasicProperties())
    assert vars(pika.BasicProperties()) == properties_reader._NOTHING
