# SPDX-License-Identifier: Apache-2.0
"""A private Redis, which the benchmark has for peers that need one."""

from __future__ import annotations

import secrets
import shutil
from functools import cached_property
from signal import SIGTERM

from devtools.ports import answers
from devtools.process import Process, ServerError
from devtools.server import Server, clean_environment, write_private

PROGRAM = "redis-server"
# Its log of commands, which is off as it comes, survives a kill of the server; written to disk once
# a second, which is Redis' own choice where the log is on. Snapshots as they come.
CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
appendonly yes
"""


def find_redis() -> str | None:
    """Return the server's program."""
    return shutil.which(PROGRAM)


class Redis(Server):
    """A server with a random password, whose data are on disk a second later."""

    label = "Redis"

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        self._stop_with(SIGTERM)

    @cached_property
    def _password(self) -> str:
        """The password of the first run in this folder."""
        file = self.folder / "password"
        if not file.exists():
            write_private(file, secrets.token_hex(16))
        return file.read_text()

    def _launch(self) -> Process:
        program = find_redis()
        if program is None:
            raise ServerError("Redis is not installed: install the package redis-server")
        configuration = self.folder / "redis.conf"
        text = CONFIGURATION.format(port=self.port, password=self._password, folder=self.folder)
        write_private(configuration, text)
        return Process(
            [program, str(configuration)],
            folder=self.folder,
            log=self.log,
            environment=clean_environment(self.folder),
        )

    def _ready(self) -> bool:
        return answers(self.port, b"PING\r\n")
