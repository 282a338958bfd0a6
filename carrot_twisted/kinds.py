# SPDX-License-Identifier: Apache-2.0
"""What kind of thing the value of a setting is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from carrot_twisted.limits import MAX_SECONDS

#: AMQP's "short string": the limit of every name on the wire, in bytes.
MAX_NAME_BYTES = 255
#: The most messages that AMQP lets a consumer hold.
MAX_PREFETCH = 65_535


def is_int(value: Any) -> bool:
    """A whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_bool(value: Any) -> bool:
    """True or False."""
    return isinstance(value, bool)


def is_list(value: Any) -> bool:
    """A list or tuple."""
    return isinstance(value, list | tuple)


def is_number(value: Any) -> bool:
    """A number, also one that is not whole."""
    return is_int(value) or isinstance(value, float)


def is_seconds(value: Any) -> bool:
    """A number of seconds above 0, a hundred years at most."""
    return is_number(value) and 0 < value <= MAX_SECONDS


def is_prefetch(value: Any) -> bool:
    """A number that AMQP's prefetch can be, or "auto"."""
    return value == "auto" or (is_int(value) and 1 <= value <= MAX_PREFETCH)


def is_name(value: Any) -> TypeGuard[str]:
    """The name of a queue or an exchange."""
    # Halves of surrogate pairs are not printable either: they have no bytes.
    return (
        isinstance(value, str) and value.isprintable() and 0 < len(value.encode()) <= MAX_NAME_BYTES
    )


def plain_name(name: str) -> str:
    """A name without capitals, and without what stands between its words: apikey for API-Key."""
    return "".join(each for each in name.casefold() if each.isalnum())


def is_word(value: Any) -> bool:
    """A text that leaves something when it is made plain."""
    return isinstance(value, str) and plain_name(value) != ""


def is_path(value: Any) -> bool:
    """A dotted path, or a name."""
    return isinstance(value, str) and all(part.isidentifier() for part in value.split("."))


def is_arguments(value: Any) -> bool:
    """The arguments of a declaration, or None."""
    if value is None:
        return True
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    from pika.data import encode_table

    try:
        encode_table([], value)
    except Exception:
        # Declaring would raise on the connection, and take the other queues' consumers with it.
        return False
    return True
