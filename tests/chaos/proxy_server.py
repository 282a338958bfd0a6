# SPDX-License-Identifier: Apache-2.0
"""Proxied paths in a process of their own: ``proxies.py`` starts it and talks to it.

    python -m tests.chaos.proxy_server <port>:<target> [<port>:<target> ...]

Standard input has one command a line, as JSON, and each is answered by one line on standard output
when it is in force: ``{"path": 0, "faults": {...}}`` or ``{"path": 0, "cut": true}``. Standard
input is also the lifeline: the process ends with its starter, however that ends.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from twisted.internet.stdio import StandardIO
from twisted.protocols.basic import LineOnlyReceiver

from tests.chaos.proxy import Faults, ProxiedPath

if TYPE_CHECKING:
    from collections.abc import Sequence


class Control(LineOnlyReceiver):
    """Does what the lines on standard input say."""

    delimiter = b"\n"

    def __init__(self, paths: Sequence[ProxiedPath], reactor: Any) -> None:
        self._paths = paths
        self._reactor = reactor

    def connectionMade(self) -> None:
        self._answer({"ready": True})

    def lineReceived(self, line: bytes) -> None:
        command = json.loads(line)
        path = self._paths[command["path"]]
        if "faults" in command:
            done = path.suffer(Faults(**command["faults"]))
            done.addCallback(lambda _: self._answer({}))
        else:
            self._answer({"cut": path.cut()})

    def connectionLost(self, reason: Any = None) -> None:
        if self._reactor.running:
            self._reactor.stop()

    def _answer(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())


def main(arguments: Sequence[str]) -> None:
    """Serve until standard input ends."""
    from twisted.internet import reactor as module

    reactor: Any = module
    paths = []
    for argument in arguments:
        port, target = argument.split(":")
        path = ProxiedPath(int(port), int(target), reactor)
        path.start()
        paths.append(path)
    StandardIO(Control(paths, reactor), reactor=reactor)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1:])
