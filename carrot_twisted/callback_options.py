# SPDX-License-Identifier: Apache-2.0
"""The options of ``twistd carrot --callback``: what ``consume`` gets as arguments.

Names are those of ``fedora-messaging consume`` and of its configuration.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.python import usage

DEFAULT_EXCHANGE = "amq.topic"
#: Options of tasks, which a process with a callback does not run, by their keys.
OF_TASKS = {
    "queues": "queue",
    "consumer-class": "consumer-class",
    "max-tasks": "max-tasks",
    "max-memory": "max-memory",
    "no-scheduler": "no-scheduler",
    "web": "web",
}
#: Options that make no sense without a callback, by their keys.
OF_CALLBACKS = {
    "queue-name": "queue-name",
    "exchange": "exchange",
    "routing_keys": "routing-key",
    "bindings": "bindings",
    "callback_queues": "queues",
    "exchanges": "exchanges",
    "prefetch-count": "prefetch-count",
    "on-error": "on-error",
    "log": "log",
}


def from_json(text: str) -> Any:
    """Read JSON, or with a leading ``@`` the JSON in a file.

    Raises:
        ValueError: it is none, or the file cannot be read.
    """
    if text.startswith("@"):
        try:
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        except OSError as error:
            raise ValueError(f"cannot be read: {error}") from None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"must be JSON, or @ and the name of a file with JSON: {error}") from None


def prefetch(text: str) -> int | str:
    """Read a prefetch count: a number or "auto".

    Raises:
        ValueError: it is neither.
    """
    return text if text == "auto" else int(text)


class CallbackOptions(usage.Options):
    """Those options, for a class that has further ones."""

    optParameters: tuple[list[Any], ...] = (
        ["callback", None, None, "Call package.module:object with messages; run no tasks."],
        ["queue-name", None, None, "Queue of the callback; default: one that the broker names."],
        ["exchange", None, None, "Exchange that the queue is bound to; default: amq.topic."],
        ["bindings", None, None, "Bindings as JSON, or @file, instead of those.", from_json],
        ["exchanges", None, None, "Exchanges to declare, as JSON, or @file.", from_json],
        ["prefetch-count", None, None, "Messages to hold for each queue, or auto.", prefetch],
        ["on-error", None, None, "halt (the default) or archive."],
        [
            *("log", None, None),
            "Messages that get a row: all, failures or none; default: failures, with a database.",
        ],
    )

    def __init__(self) -> None:
        super().__init__()
        self["routing_keys"] = []
        self["callback_queues"] = None

    def opt_routing_key(self, key: str) -> None:
        """Routing key of the binding, may be given several times; default: #."""
        self["routing_keys"].append(key)

    def opt_queues(self, text: str) -> None:
        """Queues of the callback as JSON, or @file: names to durable, auto_delete and so on."""
        try:
            self["callback_queues"] = from_json(text)
        except ValueError as error:
            raise usage.UsageError(f"--queues {error}") from None

    def consume_arguments(self) -> dict[str, Any] | None:
        """Arguments of ``callbacks.queues_of``, and "callback"; None: there is no callback.

        Raises:
            UsageError: options that do not go together.
        """
        callback = self["callback"]
        others = OF_CALLBACKS if callback is None else OF_TASKS
        given = [option for key, option in others.items() if self[key]]
        if given:
            raise usage.UsageError(
                f"--{given[0]} needs a --callback"
                if callback is None
                else f"--{given[0]} is for tasks, which a process with --callback does not run"
            )
        if callback is None:
            return None
        bindings, queues = self["bindings"], self["callback_queues"]
        name, exchange, keys = self["queue-name"], self["exchange"], self["routing_keys"]
        if exchange or keys:
            if bindings is not None:
                raise usage.UsageError("Give --bindings, or --exchange and --routing-key")
            binding = {"exchange": exchange or DEFAULT_EXCHANGE, "routing_keys": keys or ["#"]}
            bindings = [binding | ({"queue": name} if name else {})]
        if name:
            if queues is not None:
                raise usage.UsageError("Give --queues, or --queue-name")
            queues = {name: {}}
        arguments = {
            "bindings": bindings,
            "queues": queues,
            "exchanges": self["exchanges"],
            "prefetch_count": self["prefetch-count"],
            "on_error": self["on-error"],
            "log": self["log"],
            "concurrency": self["concurrency"],
        }
        return {"callback": callback} | {
            key: value for key, value in arguments.items() if value is not None
        }
