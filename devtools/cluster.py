# SPDX-License-Identifier: Apache-2.0
"""Several RabbitMQ nodes on this machine that make one cluster."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from devtools.port_mapper import PortMapper
from devtools.rabbitmq import RabbitMQ
from devtools.server import Startable, write_private

if TYPE_CHECKING:
    from pathlib import Path

# Nodes trust who knows the cookie; clients find the same user on each node.
SHARED_FILES = (".erlang.cookie", "password")
# Read on a node's first start only.
FORMATION = "cluster_formation.peer_discovery_backend = classic_config\n"


class Cluster(Startable):
    """Nodes with a common user and virtual host; each can be killed and started on its own.

    Args:
        folder: of the cluster; each node has one in it.
        size: how many nodes.
        configuration: further lines of each node's rabbitmq.conf.
        root: see ``RabbitMQ``.
    """

    def __init__(
        self, folder: Path, *, size: int = 3, configuration: str = "", root: Path | None = None
    ) -> None:
        self._port_mapper = PortMapper()
        names = [f"node{number}" for number in range(1, size + 1)]
        peers = [
            f"cluster_formation.classic_config.nodes.{number} = {name}@localhost\n"
            for number, name in enumerate(names, 1)
        ]
        self.nodes = [
            RabbitMQ(
                folder / name,
                configuration="".join([FORMATION, *peers, configuration]),
                root=root,
                node=name,
                port_mapper=self._port_mapper,
            )
            for name in names
        ]

    @property
    def url(self) -> str:
        """Where clients connect: all nodes, in their order."""
        first, *others = self.nodes
        names = ",".join([f"127.0.0.1:{node.port}" for node in (first, *others)])
        return f"amqp://{first.name}:{first.password}@{names}/{first.name}"

    def start(self) -> None:
        """Start all nodes, together: on their first start they look for each other."""
        first = self.nodes[0]
        if not (first.folder / SHARED_FILES[0]).exists():
            self._share_secrets()
        self._port_mapper.start(
            first.command, folder=first.folder, log=first.log, environment=first.environment
        )
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(RabbitMQ.start, self.nodes))

    def stop(self) -> None:
        """As ``kill``: a clean end of one after the other takes long, and nobody needs it."""
        self.kill()

    def kill(self) -> None:
        """kill -9 of all nodes."""
        for node in self.nodes:
            node.kill()
        self._port_mapper.stop()

    def leader(self, queue: str) -> RabbitMQ:
        """The node on which a quorum queue has its leader."""
        asked = next(node for node in self.nodes if node.running)
        lines = asked.ctl("list_queues", "-p", asked.name, "name", "leader").splitlines()
        names = dict(line.split("\t") for line in lines)
        return next(node for node in self.nodes if node.node == names[queue])

    def _share_secrets(self) -> None:
        for name in SHARED_FILES:
            secret = secrets.token_hex(16)
            for node in self.nodes:
                write_private(node.folder / name, secret)
