# SPDX-License-Identifier: Apache-2.0
"""Signatures of messages: who may publish to the broker, but has no SECRET_KEY, starts nothing.

Signed are the headers, among them the task's path, the message id and the body, with Django's
signer: SECRET_KEY signs, and those of SECRET_KEY_FALLBACKS still count. A message that is sent
twice has the same signature twice, and needs no other protection: its row runs once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.signing import Signer
from django.utils.crypto import constant_time_compare

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Of a message, with its signature.
HEADER = "x-carrot-signature"
#: Makes a signature of another part of the project, or of Django, worthless here.
SALT = "carrot_twisted.message"
#: Begins the names of headers that brokers add on the way, such as x-death.
_ADDED = "x-"


class Seal:
    """Signs messages and tells signed ones. It costs a few microseconds each; may be kept.

    Raises:
        ImproperlyConfigured: Django's; the project has no SECRET_KEY.
    """

    def __init__(self) -> None:
        self._signer = Signer(salt=SALT)
        self._keys = (self._signer.key, *self._signer.fallback_keys)

    def sign(self, properties: dict[str, Any], body: bytes) -> dict[str, Any]:
        """A message's properties with its signature.

        Args:
            properties: keyword arguments for ``pika.BasicProperties``.
            body: of the message.
        """
        headers = properties["headers"]
        signature = self._signer.signature(_signed(headers, properties["message_id"], body))
        return {**properties, "headers": {**headers, HEADER: signature}}

    def problem(self, headers: Mapping[str, Any] | None, message_id: str, body: bytes) -> str:
        """Why a message that arrived is not ours; "" if it is."""
        given = (headers or {}).get(HEADER)
        if given is None:
            return f"the message has no signature (header {HEADER})"
        if isinstance(given, str) and given.isascii():
            signed = _signed(headers or {}, message_id, body)
            for key in self._keys:
                if constant_time_compare(given, self._signer.signature(signed, key)):
                    return ""
        return "the message's signature is wrong: it was changed, or made with another SECRET_KEY"


def _signed(headers: Mapping[str, Any], message_id: str, body: bytes) -> bytes:
    """Headers, id and body as one text that cannot be cut in another way."""
    # As Python writes them: in one line, and text is told from numbers. A name may be of bytes.
    named = sorted(
        f"{name!r}: {value!r}"
        for name, value in headers.items()
        if not str(name).startswith(_ADDED)
    )
    return f"{named!r}\n{message_id!r}\n".encode() + body
