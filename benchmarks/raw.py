# SPDX-License-Identifier: Apache-2.0
"""The limit: pika's Twisted adapter consumes, and acknowledges as rarely as it can.

No thread, no reconnection, no retry: what remains is reading AMQP, and counting the message.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pika
from pika.adapters.twisted_connection import TwistedProtocolConnection
from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from benchmarks.tally import Tally

reactor: Any = installed
tally = Tally.of_environment()


class Acknowledger:
    """Acknowledges all that one turn of the reactor has brought by one frame."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._newest = 0

    def on_message(self, _channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        tally.handled(json.loads(body)["number"])
        if not self._newest:
            reactor.callLater(0, self.flush)
        self._newest = method.delivery_tag

    def flush(self) -> None:
        """Acknowledge what has come."""
        newest, self._newest = self._newest, 0
        if newest:
            self._channel.basic_ack(newest, multiple=True)


async def consume() -> None:
    """Consume from the queue until a signal ends the process."""
    parameters = pika.URLParameters(os.environ["BENCHMARK_BROKER"])
    endpoint = TCP4ClientEndpoint(reactor, parameters.host, parameters.port)
    protocol = await connectProtocol(endpoint, TwistedProtocolConnection(parameters))
    await protocol.ready
    channel = await protocol.channel()
    await channel.basic_qos(prefetch_count=int(os.environ["BENCHMARK_PREFETCH"]))
    # Below the adapter's own queue of deliveries, which costs a Deferred for each.
    raw = channel._channel
    acknowledger = Acknowledger(raw)
    raw.basic_consume(os.environ["BENCHMARK_QUEUE"], acknowledger.on_message)
    # The broker answers a close when it has read all that came before.
    reactor.addSystemEventTrigger("before", "shutdown", acknowledger.flush)
    reactor.addSystemEventTrigger("before", "shutdown", protocol.close)


def main() -> None:
    """Run until a signal comes."""
    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(consume()).addErrback(_failed))
    reactor.run()


def _failed(failure: Any) -> None:
    failure.printTraceback()
    reactor.stop()


if __name__ == "__main__":
    main()
