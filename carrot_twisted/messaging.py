# SPDX-License-Identifier: Apache-2.0
"""``carrot_twisted.consume`` and ``publish``, and the same for a reactor that runs already.

In the manner of fedora-messaging; see docs/callbacks.md. This module is loaded by any process that
publishes: what it needs of Django, and of Twisted, is imported when a function is called.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

from carrot_twisted import conf
from carrot_twisted.exceptions import InvalidCallback
from carrot_twisted.kinds import is_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from twisted.internet.defer import Deferred

    from carrot_twisted.sending import Outgoing
    from carrot_twisted.service.consumption import CallbackConsumer, Consumption

#: What ends ``consume``.
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def consume(
    callback: Any,
    bindings: Any = None,
    queues: Any = None,
    *,
    exchanges: Any = None,
    broker: Any = None,
    concurrency: int = 1,
    prefetch_count: int | str = "auto",
    on_error: str = "halt",
    log: str | None = None,
    shutdown_timeout: float | None = None,
) -> None:
    """Have a callback called with each message of some queues, until a signal ends the process.

    Starts Twisted's reactor, so once in a process, in its main thread. The callback runs in a
    thread of its own and may block. With SIGINT or SIGTERM this returns, when the callback that
    runs has ended; a second signal does not wait for that.

    Args:
        callback: gets a ``carrot_twisted.handlers.Message``. A function, ``async def``, any other
            callable, or a class, of which one object is made.
        bindings: a dictionary with "exchange", "routing_keys" and, if there are several, "queue";
            or a list of those. With neither bindings nor queues: all that is published to the
            exchange amq.topic.
        queues: names to dictionaries with "durable", "auto_delete", "exclusive", "arguments"; what
            is left out is that of a durable queue. The queue "" is named by the broker, and is
            gone with its consumer.
        exchanges: to declare beforehand: names to dictionaries with "type" ("topic" if left out),
            "durable", "auto_delete", "arguments". Others have to exist.
        broker: URL or ``VirtualHost``; by default ``CARROT["default_broker"]``, without a Django
            project the environment's CARROT_BROKER.
        concurrency: messages that the callback gets at once, each in a thread.
        prefetch_count: messages to hold for each queue; "auto" follows the callback's run time.
        on_error: what an exception that is none of Nack, Drop, HaltConsumer does: "halt" ends the
            consumer, "archive" puts the message into the queue ``<queue>.archived`` and goes on.
        log: which messages get a row in the ``MessageLog`` of a Django project: "all", "failures"
            or "none". Failures are those that go to the archive, that the callback drops, and that
            end the consumer, unless by HaltConsumer with exit code 0. By default "failures", and
            "none" without a project or a database.
        shutdown_timeout: seconds that running callbacks get to end; by default the setting.

    Raises:
        InvalidCallback: the arguments cannot work. Nothing was consumed.
        HaltConsumer: the callback has raised it.
        BaseException: whatever else the callback has raised. Its message and those that had been
            prefetched are back in their queues.
        RuntimeError: the reactor runs, or ran, in this process.
    """
    conf.set_up()
    from twisted.internet import reactor as installed
    from twisted.internet.error import ReactorNotRestartable

    reactor: Any = installed
    if reactor.running:
        raise RuntimeError("The reactor runs already: use carrot_twisted.twisted_consume.")
    consumption = _consumption(
        callback,
        shutdown_timeout,
        bindings=bindings,
        queues=queues,
        exchanges=exchanges,
        broker=broker,
        concurrency=concurrency,
        prefetch_count=prefetch_count,
        on_error=on_error,
        log=log,
    )
    # Twisted's clock is the wall's: a clock that is set would stall or fire every timer.
    reactor.seconds = time.monotonic
    outcomes: list[BaseException] = []

    def ended(failure: Any) -> None:
        outcomes.append(failure.value)
        stop()

    def stop() -> None:
        # Both a signal and a consumer's end may ask for it.
        if not stopping:
            stopping.append(True)
            reactor.stop()

    stopping: list[bool] = []
    for consumer in consumption.consumers:
        consumer.result.addErrback(ended)
    reactor.callWhenRunning(_log_as_python_does)
    reactor.callWhenRunning(_on_signals, reactor, stop, consumption.hurry)
    reactor.callWhenRunning(lambda: _start(consumption, reactor).addErrback(ended))
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        reactor.run()
    except ReactorNotRestartable:
        raise RuntimeError(
            "The reactor has run in this process and cannot run again: call consume once, with "
            "all queues, or use carrot_twisted.twisted_consume."
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if outcomes:
        raise outcomes[0]


def twisted_consume(
    callback: Any,
    bindings: Any = None,
    queues: Any = None,
    *,
    shutdown_timeout: float | None = None,
    **options: Any,
) -> Deferred[list[CallbackConsumer]]:
    """The same in a reactor that runs, or is about to.

    Args:
        callback: as for ``consume``.
        bindings: as for ``consume``.
        queues: as for ``consume``.
        shutdown_timeout: as for ``consume``.
        options: as for ``consume``.

    Returns:
        A Deferred that fires when the broker delivers from all queues, with a ``CallbackConsumer``
        for each. While the broker is away it waits. Consumers end with the reactor.

    Raises:
        InvalidCallback: the arguments cannot work. Nothing was consumed.
    """
    conf.set_up()
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    consumption = _consumption(
        callback, shutdown_timeout, bindings=bindings, queues=queues, **options
    )
    started = _start(consumption, reactor)
    return started.addCallback(lambda _: Deferred.fromCoroutine(consumption.ready()))


def publish(
    body: Any,
    exchange: str = "",
    routing_key: str = "",
    *,
    headers: Mapping[str, Any] | None = None,
    broker: Any = None,
    timeout: float = 30.0,
    **properties: Any,
) -> None:
    """Publish a message, and wait until the broker has it. From any thread but the reactor's.

    A message whose confirm does not come is sent again, until the time is over: it may come twice.

    Args:
        body: bytes as they are, text, or what JSON can say.
        exchange: where to; "" is the nameless one, where the routing key names a queue.
        routing_key: with fedora-messaging, the topic.
        headers: of the message.
        broker: as for ``consume``.
        timeout: seconds.
        properties: further ones of AMQP's, as pika calls them: priority, message_id, expiration.
            The message is persistent unless ``delivery_mode`` says otherwise.

    Raises:
        PublishReturned: no queue gets it, there is no such exchange, or the broker refused it.
        PublishTimeout: the broker has not confirmed it in time.
        InvalidMessage: it cannot be sent.
    """
    message, timeout = _outgoing(
        body, exchange, routing_key, headers, broker, timeout, **properties
    )
    from carrot_twisted import sending

    sending.publish(message, timeout)


def twisted_publish(
    body: Any,
    exchange: str = "",
    routing_key: str = "",
    *,
    headers: Mapping[str, Any] | None = None,
    broker: Any = None,
    timeout: float = 30.0,
    **properties: Any,
) -> Deferred[None]:
    """The same in the reactor's thread: a Deferred that fires with None, or fails as above."""
    message, timeout = _outgoing(
        body, exchange, routing_key, headers, broker, timeout, **properties
    )
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from carrot_twisted.service import confirming

    return Deferred.fromCoroutine(confirming.publish(message, timeout, reactor))


def _outgoing(
    body: Any,
    exchange: str,
    routing_key: str,
    headers: Mapping[str, Any] | None,
    broker: Any,
    timeout: float,
    **properties: Any,
) -> tuple[Outgoing, float]:
    conf.set_up()
    from carrot_twisted import callbacks, sending

    message = sending.outgoing(
        body,
        exchange,
        routing_key,
        headers=headers,
        host=callbacks.broker_of(broker),
        **properties,
    )
    return message, sending.check_timeout(timeout)


def _consumption(callback: Any, shutdown_timeout: float | None, **options: Any) -> Consumption:
    from twisted.internet import reactor

    from carrot_twisted import callbacks
    from carrot_twisted.service.consumption import Consumption

    if shutdown_timeout is not None and not is_seconds(shutdown_timeout):
        raise InvalidCallback(
            f"shutdown_timeout is a number of seconds above 0, not {shutdown_timeout!r}."
        )
    queues = callbacks.queues_of(callbacks.prepared(callback), **options)
    return Consumption(queues, reactor, shutdown_timeout)


def _start(consumption: Consumption, reactor: Any) -> Deferred[Any]:
    from twisted.internet.defer import Deferred

    reactor.addSystemEventTrigger("before", "shutdown", consumption.stop)
    return Deferred.fromCoroutine(consumption.start())


def _on_signals(reactor: Any, first: Callable[[], None], second: Callable[[], None]) -> None:
    """Have one thing done at the first signal, and another at the next. The reactor runs."""
    actions = [first]

    def on_signal(_number: int, _frame: Any) -> None:
        reactor.callFromThread(actions.pop() if actions else second)

    for number in SIGNALS:
        signal.signal(number, on_signal)


def _log_as_python_does() -> None:
    """What Twisted tells goes to the logger "twisted" of Python's logging."""
    from twisted.logger import STDLibLogObserver, globalLogBeginner

    globalLogBeginner.beginLoggingTo([STDLibLogObserver()], redirectStandardIO=False)
