# SPDX-License-Identifier: Apache-2.0
"""A message as people read it: in its row, and in what is told of an archive."""

from __future__ import annotations

from carrot_twisted import outcomes

#: Properties that are shown.
PROPERTIES = (
    *("message_id", "content_type", "content_encoding", "timestamp", "type", "app_id", "user_id"),
    *("correlation_id", "reply_to", "expiration"),
)


def readable(body: bytes, encoding: str | None, limit: int) -> str:
    """The body of a message as text, cut at ``limit`` characters.

    What is no text in the encoding that it says is shown as escapes.
    """
    # A character takes four bytes at most; one more than may be shown tells that there is more.
    part = body[: 4 * limit + 4]
    try:
        text = part.decode(str(encoding or "utf-8"), "backslashreplace")
    except (LookupError, ValueError):
        text = part.decode("utf-8", "backslashreplace")
    shown = outcomes.stored(text[:limit], limit)
    return f"{shown}… (cut: it has {len(body)} bytes)" if len(text) > limit else shown
