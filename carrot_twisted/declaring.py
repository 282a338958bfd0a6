# SPDX-License-Identifier: Apache-2.0
"""Declares topology on any open pika connection, and survives what the broker refuses.

Callback style on ``pika.connection.Connection``, so that the service (pika's Twisted adapter)
and every other process (pika's select adapter) share it. All calls happen on the thread that
owns the connection.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pika.exceptions import AMQPError, ChannelClosedByBroker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pika.channel import Channel
    from pika.connection import Connection

    from carrot_twisted.topology import Step

_logger = logging.getLogger("carrot_twisted.declaring")

#: RabbitMQ's name for queues that are neither durable nor exclusive. Where it is configured to
#: permit none, as a later version will be by itself, it closes the whole connection.
TRANSIENT_QUEUES = "transient_nonexcl_queues"
#: Servers, (host, port), that have done so.
_durable_only: set[tuple[str, int]] = set()
#: Reply code of RabbitMQ for a declaration whose arguments differ from what exists.
PRECONDITION_FAILED = 406
#: Reply code for what is not there.
NOT_FOUND = 404
#: Reply code for a user without the permission to configure.
ACCESS_REFUSED = 403


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """The broker did not accept one declaration."""

    step: Step
    code: int
    """AMQP reply code; 0 if the connection went away first."""
    text: str

    @property
    def exists_differently(self) -> bool:
        """It is there, with other arguments than ours: usable as it is."""
        return self.code == PRECONDITION_FAILED

    @property
    def absent(self) -> bool:
        """What was looked for is not there."""
        return self.code == NOT_FOUND

    @property
    def forbidden(self) -> bool:
        """The user may not declare it; it may be there all the same."""
        return self.code == ACCESS_REFUSED


def declare(
    connection: Connection,
    steps: Sequence[Step],
    done: Callable[[list[Refusal]], None],
    told: Callable[[Step, Any], None] = lambda _step, _frame: None,
) -> None:
    """Run declarations one after another on a channel of their own; call ``done`` once.

    A refused declaration closes the channel, as AMQP demands; the next one gets a new channel.
    The publishing and consuming channels are never put at risk.

    Args:
        connection: open.
        steps: what to declare, in this order.
        done: called at the end, with what was refused.
        told: called after each declaration that was accepted, with the broker's answer.
    """
    _Declaration(connection, list(steps), done, told).open()


class _Declaration:
    def __init__(
        self,
        connection: Connection,
        steps: list[Step],
        done: Callable[[list[Refusal]], None],
        told: Callable[[Step, Any], None],
    ) -> None:
        self._connection = connection
        self._steps = steps
        self._done = done
        self._told = told
        self._refusals: list[Refusal] = []
        self._finished = False

    def open(self) -> None:
        try:
            channel = self._connection.channel(on_open_callback=self._next)
        except AMQPError as error:
            self._fail(error)
        else:
            channel.add_on_close_callback(self._closed)

    def _next(self, channel: Channel) -> None:
        if not channel.is_open:
            # We are closing the connection ourselves; the channel's end tells what is undone.
            return
        if not self._steps:
            self._finished = True
            channel.close()
            self._done(self._refusals)
            return
        step = self._steps[0]
        arguments = dict(step.arguments)
        if step.method == "queue_declare" and self._server in _durable_only:
            arguments["durable"] = True
        getattr(channel, step.method)(
            **arguments, callback=lambda frame: self._declared(channel, frame)
        )

    def _declared(self, channel: Channel, frame: Any) -> None:
        self._told(self._steps.pop(0), frame)
        self._next(channel)

    @property
    def _server(self) -> tuple[str, int]:
        parameters = self._connection.params
        return parameters.host, parameters.port

    def _closed(self, _channel: Channel, reason: Any) -> None:
        if self._finished:
            return
        if TRANSIENT_QUEUES in str(reason) and self._steps and self._server not in _durable_only:
            _durable_only.add(self._server)
            _logger.warning(
                "The broker %s:%s permits durable queues only, and has closed the connection over "
                "%s; from now on that is declared durable. Set 'durable': True for it.",
                *self._server,
                self._steps[0].name,
            )
        if isinstance(reason, ChannelClosedByBroker) and self._steps:
            self._refusals.append(
                Refusal(step=self._steps.pop(0), code=reason.reply_code, text=reason.reply_text)
            )
            self.open()
        else:
            self._fail(reason)

    def _fail(self, reason: object) -> None:
        self._finished = True
        self._refusals += [Refusal(step=s, code=0, text=repr(reason)) for s in self._steps]
        self._done(self._refusals)
