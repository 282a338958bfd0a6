# SPDX-License-Identifier: Apache-2.0
"""What the message of a task says: which row it is of, which task, and who has signed it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from carrot_twisted import wire
from carrot_twisted.execution import Run

if TYPE_CHECKING:
    from carrot_twisted.records import Claimed
    from carrot_twisted.service.delivery import Delivery
    from carrot_twisted.signing import Seal


def message_id_of(delivery: Delivery) -> UUID | None:
    """The message's id, if it can be that of a row."""
    try:
        return UUID(delivery.properties.message_id)
    except (ValueError, TypeError, AttributeError):
        return None


def task_of(delivery: Delivery) -> str:
    """What the message says; "" if nothing."""
    header = (delivery.properties.headers or {}).get(wire.TYPE_HEADER)
    return header if isinstance(header, str) else ""


def problem_of(delivery: Delivery, seal: Seal) -> str:
    """Why the signature of a message is none of ours; "" if it is."""
    properties = delivery.properties
    return seal.problem(properties.headers, properties.message_id, delivery.body)


def run_of_row(claimed: Claimed) -> Run:
    """What a worker thread gets of a claimed row without a message."""
    return Run.of(claimed, header=claimed.task, body=wire.body(claimed.task_args, claimed.content))


def run_of(claimed: Claimed, delivery: Delivery) -> Run:
    """What a worker thread gets of a claimed row, and of the message that rang for it."""
    headers = delivery.properties.headers or {}
    header = headers.get(wire.TYPE_HEADER)
    return Run.of(
        claimed,
        header=header if isinstance(header, str) else None,
        headers=headers,
        body=delivery.body,
    )
