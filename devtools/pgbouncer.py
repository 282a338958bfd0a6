# SPDX-License-Identifier: Apache-2.0
"""A private PgBouncer in front of a PostgreSQL, which gives out its connections by transaction."""

from __future__ import annotations

import os
import shutil
from signal import SIGINT
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from devtools.ports import answers
from devtools.postgresql import account_beside_root
from devtools.process import Process, ServerError
from devtools.server import Server, clean_environment, write_private

if TYPE_CHECKING:
    from pathlib import Path

CONFIGURATION = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
"""


class PgBouncer(Server):
    """All databases of a server, by the same names, for the user of a URL.

    Args:
        server: URL of the PostgreSQL.
        settings: lines of the section [pgbouncer], as documented for users.
    """

    label = "PgBouncer"

    def __init__(self, folder: Path, server: str, *, settings: str) -> None:
        super().__init__(folder)
        self._server = urlsplit(server)
        self._settings = settings

    @property
    def url(self) -> str:
        user = f"{self._server.username}:{self._server.password}"
        return self._server._replace(netloc=f"{user}@127.0.0.1:{self.port}").geturl()

    def stop(self) -> None:
        self._stop_with(SIGINT)

    def _launch(self) -> Process:
        environment = clean_environment(self.folder)
        program = shutil.which("pgbouncer", path=environment["PATH"])
        if program is None:
            raise ServerError("PgBouncer is not installed: install the package pgbouncer")
        users, configuration = self.folder / "users", self.folder / "pgbouncer.ini"
        write_private(users, f'"{self._server.username}" "{self._server.password}"\n')
        text = CONFIGURATION.format(
            host=self._server.hostname, port=self._server.port, own_port=self.port, users=users
        )
        write_private(configuration, text + self._settings)
        account = account_beside_root()
        if account is not None:
            for path in (self.folder, users, configuration):
                os.chown(path, account.pw_uid, account.pw_gid)
        return Process(
            [program, str(configuration)],
            folder=self.folder,
            log=self.log,
            environment=environment,
            user=account.pw_name if account else None,
        )

    def _ready(self) -> bool:
        return answers(self.port)
