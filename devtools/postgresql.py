# SPDX-License-Identifier: Apache-2.0
"""A private PostgreSQL server, beside any that already runs, under any user."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from devtools.process import Process, ServerError, children_of
from devtools.server import Server, clean_environment, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping

PROGRAMS = ("postgres", "initdb", "psql", "pg_isready")
CREATE_DATABASE = """\
SELECT 'CREATE DATABASE {name}'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{name}') \\gexec
"""
STOP_SIGNALS = {
    "smart": signal.SIGTERM,  # waits for the clients
    "fast": signal.SIGINT,  # ends the sessions
    "immediate": signal.SIGQUIT,  # as a crash would: recovery at the next start
}


def find_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs (Debian keeps it off PATH)."""
    installed = Path("/usr/lib/postgresql").glob("*/bin")
    places = sorted(installed, key=lambda place: float(place.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        places.append(Path(on_path).parent)
    return next((p for p in places if all((p / program).exists() for program in PROGRAMS)), None)


class PostgreSQL(Server):
    """A server with a database of its own, and its default settings: what is committed is on disk.

    The user of `url` is the superuser: tests create and drop databases.

    Args:
        settings: instead of the defaults of postgresql.conf.
    """

    label = "PostgreSQL"
    name = "carrot"  # of the user and of the database

    def __init__(
        self, folder: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, port=port)
        self._settings = settings or {}
        self._frozen: list[int] = []

    @property
    def url(self) -> str:
        return f"postgres://{self.name}:{self._password}@127.0.0.1:{self.port}/{self.name}"

    def sql(self, text: str, *, database: str = name) -> str:
        """Run SQL text with psql; return the rows, one per line, columns parted by `|`."""
        return self._run(
            "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-", stdin=text
        )

    def start(self) -> None:
        if self.running:
            return
        super().start()
        self.sql(CREATE_DATABASE.format(name=self.name), database="postgres")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """End the server as `pg_ctl stop` does; its data stay."""
        self.resume()  # frozen sessions would not end
        self._stop_with(STOP_SIGNALS[mode])

    def pause(self) -> None:
        """Freeze the server, which takes no connection then, and its sessions, processes too."""
        super().pause()
        if self.pid is not None:
            self._frozen = children_of(self.pid)
            self._send_to_frozen(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the server and its sessions go on."""
        self._send_to_frozen(signal.SIGCONT)
        self._frozen = []
        super().resume()

    def _send_to_frozen(self, number: signal.Signals) -> None:
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @cached_property
    def _programs(self) -> Path:
        programs = find_programs()
        if programs is None:
            raise ServerError(
                "PostgreSQL is not installed: install the package postgresql, "
                "or name a running server in CARROT_DATABASE_URL"
            )
        return programs

    @cached_property
    def _password(self) -> str:
        """The password of the first run in this folder: the server keeps it in its database."""
        file = self.folder / "password"
        if not file.exists():
            self._own_folder()
            write_private(file, secrets.token_hex(16))
            self._hand_over(file)
        return file.read_text()

    @cached_property
    def _account(self) -> pwd.struct_passwd | None:
        return account_beside_root()

    @cached_property
    def _environment(self) -> dict[str, str]:
        connection = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.name,
            "PGPASSWORD": self._password,
        }
        return clean_environment(self.folder) | connection

    def _launch(self) -> Process:
        data = self.folder / "data"
        if not data.exists():
            self._create(data)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",  # their paths must be short, and TCP is what we offer
            **self._settings,
        }
        return Process(
            [
                str(self._programs / "postgres"),
                "-D",
                str(data),
                *(f"--{key}={value}" for key, value in settings.items()),
            ],
            folder=self.folder,
            log=self.log,
            environment=self._environment,
            user=self._account.pw_name if self._account else None,
            end_signal=STOP_SIGNALS["immediate"],
        )

    def _create(self, data: Path) -> None:
        """Create the data folder; a run that is interrupted here leaves none."""
        self._own_folder()
        draft = data.with_name("data.new")
        shutil.rmtree(draft, ignore_errors=True)
        self._run(
            "initdb",
            f"--pgdata={draft}",
            f"--username={self.name}",
            f"--pwfile={self.folder / 'password'}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",  # the only one that every machine has
        )
        draft.rename(data)

    def _ready(self) -> bool:
        try:
            self._run("pg_isready", "-q", "-d", self.name)
        except ServerError:
            return False
        return True

    def _run(self, program: str, *arguments: str, stdin: str = "") -> str:
        """Run one of PostgreSQL's programs as the user who runs the server."""
        account = self._account
        result = subprocess.run(
            [str(self._programs / program), *arguments],
            env=self._environment,
            cwd=self.folder,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            user=account.pw_uid if account else None,
            group=account.pw_gid if account else None,
            extra_groups=[] if account else None,
        )
        if result.returncode:
            raise ServerError(f"{program} failed: {result.stdout}{result.stderr}")
        return result.stdout

    def _own_folder(self) -> None:
        """Make the folder, and hand it over to the user who runs the server."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._hand_over(self.folder)
        if self._account and not reachable(self.folder, self._account):
            raise ServerError(
                f"PostgreSQL does not run as root, and the user {self._account.pw_name} who runs "
                f"it instead cannot reach {self.folder}. Use a folder that others may pass "
                "through, for example one of devtools.folders.temporary_folder()"
            )

    def _hand_over(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)


def account_beside_root() -> pwd.struct_passwd | None:
    """Who runs a server where we are root, which PostgreSQL and PgBouncer refuse; else None."""
    if os.geteuid() != 0:
        return None
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    return accounts.get("postgres") or accounts["nobody"]


def reachable(folder: Path, account: pwd.struct_passwd) -> bool:
    """True if this user may write into the folder."""
    test = subprocess.run(
        ["test", "-w", str(folder)],
        cwd="/",
        check=False,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
    )
    return test.returncode == 0
