# SPDX-License-Identifier: Apache-2.0
"""The message on the wire: what is let out, and what may come in."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carrot_twisted import wire
from carrot_twisted.exceptions import InvalidMessage, PoisonMessage

texts = st.text()
#: With lone surrogates, which text() leaves out.
any_texts = st.text(st.characters(exclude_categories=()))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
finite = scalars.filter(lambda value: not (isinstance(value, float) and math.isinf(value)))
json_values = st.recursive(
    finite, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8
)
any_values = st.recursive(
    scalars
    | any_texts
    | st.binary()
    | st.floats()
    | st.dates()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(any_texts | st.integers() | st.booleans() | st.none(), inner)
        | st.frozensets(st.integers())
    ),
    max_leaves=10,
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


Point = namedtuple("Point", "x y")

cyclic: list[Any] = []
cyclic.append(cyclic)


@given(json_values)
@example("\x00")
@example({"": -0.0, "\U0001f955": [10**4000]})
def test_every_json_value_comes_back_equal_and_of_its_own_types(value: Any) -> None:
    back = json.loads(wire.exact_json(value, "value"))
    assert back == value
    assert repr(back) == repr(value)


@given(any_values)
def test_what_is_accepted_comes_back_equal_and_what_is_not_is_refused(value: Any) -> None:
    try:
        text = wire.exact_json(value, "value")
    except InvalidMessage:
        return
    assert json.loads(text) == value
    text.encode()


REFUSED: dict[str, Any] = {
    "nested tuple": [(1, 2)],
    "tuple in a dictionary": {"a": (1,)},
    "named tuple": [Point(1, 2)],
    "key that is a number": {1: "a"},
    "key None": {None: "a"},
    "key True": {True: "a"},
    "deep key": {"deep": [{1.5: "a"}]},
    "NaN": float("nan"),
    "infinity": [float("inf")],
    "minus infinity": {"a": -float("inf")},
    "bytes": b"bytes",
    "date": datetime.date(2024, 2, 29),
    "time": datetime.datetime(2024, 2, 29, tzinfo=datetime.UTC),
    "decimal": decimal.Decimal("1.5"),
    "UUID": uuid.UUID(int=1),
    "set": {1, 2},
    "object": object(),
    "function": len,
    "cycle": cyclic,
    "too deep": nested(100_000),
    "more digits than Python reads": 10**5000,
    "two surrogates that would become one character": "\ud83d\udc00",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_json_would_change_or_cannot_say_is_refused(name: str) -> None:
    with pytest.raises(InvalidMessage, match="keyword arguments"):
        wire.exact_json(REFUSED[name], "keyword arguments")


def test_however_deep_arguments_are_they_are_taken_or_refused() -> None:
    """Where the encoder's limit ends and the decoder's begins is no gap to fall through."""
    for depth in range(900, 1010):
        for value in (nested(depth), {"key": nested(depth)}):
            try:
                text = wire.exact_json(value, "arguments")
            except InvalidMessage:
                continue
            assert wire.arguments(f'{{"args": [{text}]}}')[0] == [value]


def test_wide_arguments_are_not_deep() -> None:
    value = {"rows": [[{"a": []}, {}] for _ in range(1000)], "deep": nested(50)}
    assert json.loads(wire.exact_json(value, "arguments")) == value


def test_the_advice_says_what_can_be_sent() -> None:
    with pytest.raises(InvalidMessage, match="pass JSON values only: None, booleans, numbers"):
        wire.exact_json([b""], "positional arguments")


def test_dictionaries_of_other_classes_are_dictionaries() -> None:
    assert wire.exact_json(OrderedDict(b=1, a=2), "x") == '{"b": 1, "a": 2}'


def test_nul_and_lone_surrogates_are_escaped_so_that_any_database_holds_the_text() -> None:
    assert wire.exact_json("\x00", "x") == r'"\u0000"'
    assert wire.exact_json("\udc80", "x") == r'"\udc80"'
    assert wire.exact_json(["é", "\udc80"], "x") == r'["\u00e9", "\udc80"]'


def test_other_text_goes_as_utf8() -> None:
    assert wire.exact_json("Möhre 🥕", "x") == '"Möhre 🥕"'


@pytest.mark.parametrize(
    ("args", "kwargs", "body"),
    [
        ([], {}, b"{}"),
        ([1, "a"], {}, b'{"args": [1, "a"]}'),
        ([], {"key": None}, b'{"kwargs": {"key": null}}'),
        ([1.5, True], {"a": [{}]}, b'{"args": [1.5, true], "kwargs": {"a": [{}]}}'),
    ],
)
def test_the_body_is_that_of_django_carrot_byte_for_byte(
    args: list[Any], kwargs: dict[str, Any], body: bytes
) -> None:
    assert wire.body(json.dumps(args), json.dumps(kwargs)) == body


@given(st.lists(json_values, max_size=3), st.dictionaries(texts, json_values, max_size=3))
def test_arguments_reads_what_body_wrote(args: list[Any], kwargs: dict[str, Any]) -> None:
    texts = wire.exact_json(args, "args"), wire.exact_json(kwargs, "kwargs")
    for read in (wire.arguments(wire.body(*texts)), wire.row_arguments(*texts)):
        assert (list(read[0]), read[1]) == (args, kwargs)


def test_properties_are_django_carrots_and_persistent() -> None:
    assert wire.properties("app.tasks.work", "id", 7) == {
        "headers": {"type": "app.tasks.work"},
        "content_type": "application/json",
        "priority": 7,
        "message_id": "id",
        "type": "django-carrot message",
        "delivery_mode": 2,
        "app_id": "carrot-twisted",
    }


def test_a_message_of_django_carrot_is_read() -> None:
    """It escapes what is not ASCII, and tuples have become lists."""
    args, kwargs = wire.arguments(rb'{"args": ["M\u00f6hre", [1, 2]], "kwargs": {"a": null}}')
    assert (args, kwargs) == (["Möhre", [1, 2]], {"a": None})


def test_absent_arguments_are_none_at_all() -> None:
    args, kwargs = wire.arguments(b"{}")
    assert (tuple(args), dict(kwargs)) == ((), {})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe{}",
        b"\x80",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b'{"args": {}}',
        b'{"args": "text"}',
        b'{"args": null}',
        b'{"kwargs": []}',
        b'{"kwargs": null}',
        b'{"args": [NaN]}',
        b'{"args": [-Infinity]}',
        b'{"args": [' + b"9" * 5000 + b"]}",
        b'{"args": ' + b"[" * 100_000,
        b'{"args": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' * 100_000,
        b"{} {}",
        b'{"args": [1]',
        "{}".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:16]),
)
def test_a_body_that_makes_no_sense_is_poison(body: bytes) -> None:
    with pytest.raises(PoisonMessage, match=r"^(The|In the) message body"):
        wire.arguments(body)


@given(st.binary() | any_texts | json_values.map(json.dumps))
def test_any_body_is_read_or_is_poison(body: bytes | str) -> None:
    try:
        args, kwargs = wire.arguments(body)
    except PoisonMessage:
        return
    assert isinstance(args, list | tuple)
    assert isinstance(kwargs, dict)
