# SPDX-License-Identifier: Apache-2.0
"""The message on the wire, in the format of django-carrot, so that both can share a queue.

Body: ``{"args": [...], "kwargs": {...}}`` as JSON, each key left out when empty. Properties: the
task's dotted path in header ``type``, the row's primary key as ``message_id``. Unlike
django-carrot's, our messages are persistent, and say in ``app_id`` that their row was committed
before they were sent.
"""

from __future__ import annotations

import ast
import json
from typing import TYPE_CHECKING, Any, NoReturn

from carrot_twisted.exceptions import InvalidMessage, PoisonMessage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TYPE_HEADER = "type"
MESSAGE_TYPE = "django-carrot message"
APP_ID = "carrot-twisted"
CONTENT_TYPE = "application/json"
PERSISTENT = 2
MAX_PRIORITY = 255
#: In a quorum queue, what RabbitMQ takes a message for that says nothing. It is 4.0 to 4.2's last
#: normal one, those above are its high ones; 4.3 tells 0 to 31 apart.
QUORUM_NORMAL, QUORUM_HIGHEST = 4, 31
#: Lists and objects inside each other. Python's parsers give up somewhere near 1,000, less what the
#: caller's own stack takes.
MAX_DEPTH = 200
#: Characters of a literal that is read. Ten times as many take seconds, and half a gigabyte.
MAX_LITERAL = 100_000
#: What an empty tuple and an empty dictionary look like in a row.
NO_ARGS = "[]"
NO_KWARGS = "{}"
_ADVICE = "pass JSON values only: None, booleans, numbers, text, lists, dictionaries with text keys"

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_encode_ascii = json.JSONEncoder(allow_nan=False).encode


def exact_json(value: Any, what: str) -> str:
    """``value`` as JSON text that reads back as an equal value.

    Args:
        value: what is to be sent.
        what: how the error names it, for example "positional arguments".

    Raises:
        InvalidMessage: it would arrive as something else (a tuple as a list, a number as a text
            key), or not at all.
    """
    try:
        text = _encode(value)
        text.encode()
    except UnicodeEncodeError:
        # Lone surrogates have no UTF-8; JSON can still say them with escapes.
        text = _encode_ascii(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"The {what} cannot be sent as JSON ({error}): {_ADVICE}.") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(text, what)
    if json.loads(text) != value:
        raise InvalidMessage(
            f"The {what} would arrive changed (a tuple as a list, a key that is no text as a "
            f"text): {_ADVICE}."
        )
    return text


def _check_depth(text: str, what: str) -> None:
    depth = deepest = 0
    in_text = False
    skip = False
    for character in text:
        if skip:
            skip = False
        elif in_text:
            skip = character == "\\"
            in_text = character != '"'
        elif character == '"':
            in_text = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise InvalidMessage(
            f"The {what} are nested {deepest} levels deep; at most {MAX_DEPTH} can be sent."
        )


def body(args_json: str, kwargs_json: str) -> bytes:
    """The message body for arguments that are JSON text already, as a row keeps them."""
    parts = []
    if args_json != NO_ARGS:
        parts.append(f'"args": {args_json}')
    if kwargs_json != NO_KWARGS:
        parts.append(f'"kwargs": {kwargs_json}')
    return f"{{{', '.join(parts)}}}".encode()


def properties(task: str, message_id: str, priority: int) -> dict[str, Any]:
    """Keyword arguments for ``pika.BasicProperties``."""
    return {
        "headers": {TYPE_HEADER: task},
        "content_type": CONTENT_TYPE,
        "delivery_mode": PERSISTENT,
        "priority": priority,
        "message_id": message_id,
        "type": MESSAGE_TYPE,
        "app_id": APP_ID,
    }


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(parse_constant=_refuse_constant).decode


def arguments(data: bytes | str) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and keyword arguments of a message body.

    Raises:
        PoisonMessage: the body is not of the form above.
    """
    try:
        content = _decode(data.decode() if isinstance(data, bytes) else data)
    except (ValueError, RecursionError) as error:
        raise PoisonMessage(f"The message body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise PoisonMessage("The message body is not a JSON object with args and kwargs.")
    args = content.get("args", ())
    kwargs = content.get("kwargs", {})
    if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
        raise PoisonMessage("In the message body args must be a list and kwargs an object.")
    return args, kwargs


def row_arguments(args_json: str, kwargs_json: str) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Positional and keyword arguments as a row keeps them."""
    args = json.loads(args_json) if args_json != NO_ARGS else ()
    kwargs = json.loads(kwargs_json) if kwargs_json != NO_KWARGS else {}
    return args, kwargs


def stored_list(text: str) -> list[Any]:
    """Positional arguments that a person or another program wrote into a row.

    Raises:
        InvalidMessage: the text is no JSON list.
    """
    value = _stored(text or NO_ARGS)
    if not isinstance(value, list):
        raise InvalidMessage(f"Positional arguments are a JSON list, not {text[:100]!r}.")
    return value


def stored_object(text: str) -> dict[str, Any]:
    """Keyword arguments that a person or another program wrote into a row.

    Raises:
        InvalidMessage: the text is no JSON object.
    """
    value = _stored(text or NO_KWARGS)
    if not isinstance(value, dict):
        raise InvalidMessage(f"Keyword arguments are a JSON object, not {text[:100]!r}.")
    return value


def literal(text: str) -> Any:
    """A Python literal, as django-carrot's rows hold them. Nothing in it is evaluated.

    Raises:
        ValueError: it is none, or too long or too deep to be read.
    """
    if len(text) > MAX_LITERAL:
        raise ValueError(f"a literal of {len(text)} characters is not read")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"no literal: {type(error).__name__}") from None


def _stored(text: str) -> Any:
    try:
        return _decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidMessage(f"These arguments are not JSON ({error}): {text[:100]!r}.") from None
