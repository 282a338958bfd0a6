# SPDX-License-Identifier: Apache-2.0
"""The databases: fresh ones for each system, dropped in the end."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, LiteralString
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

from benchmarks import processes
from benchmarks.file_systems import file_system

if TYPE_CHECKING:
    from typing import Self


class Database(ABC):
    """Where databases can be made."""

    label: str

    @abstractmethod
    def create(self, name: str) -> str:
        """Make a database; return its URL."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Return the version, and what decides about durability."""

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that the server has used so far, where there is one to be seen."""
        return None

    def transactions(self, name: str) -> int:
        """Return how many transactions a database has seen, where its server counts them."""
        return 0

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Drop what was created."""


class Sqlite(Database):
    """Files in a folder that is deleted by its owner."""

    label = "SQLite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __exit__(self, *_: object) -> None:
        """Nothing to do: the files go with their folder."""

    def create(self, name: str) -> str:
        return f"sqlite://{quote(str(self._folder / name))}.sqlite3"

    def facts(self) -> dict[str, str]:
        return {
            "SQLite": f"{sqlite3.sqlite_version}, WAL, synchronous=FULL, "
            f"data on {file_system(self._folder)}"
        }


class Postgres(Database):
    """Databases on a running server."""

    label = "PostgreSQL"

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._connection = psycopg.connect(url, autocommit=True)
        self._created: list[str] = []
        self._pid = processes.find_server(self._url.hostname, self._url.port or 5432)

    def __exit__(self, *_: object) -> None:
        for name in self._created:
            self._connection.execute(
                sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            )
        self._connection.close()

    def create(self, name: str) -> str:
        self._connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        self._created.append(name)
        return self._url._replace(path=f"/{name}").geturl()

    def facts(self) -> dict[str, str]:
        found = [
            self._show("server_version").split()[0],
            f"fsync={self._show('fsync')}",
            f"synchronous_commit={self._show('synchronous_commit')}",
        ]
        if self._pid:
            found.append(f"data on {file_system(Path(self._show('data_directory')))}")
        return {"PostgreSQL": ", ".join(found)}

    def cpu_seconds(self) -> float | None:
        return processes.tree_cpu_seconds(self._pid) if self._pid else None

    def transactions(self, name: str) -> int:
        row = self._connection.execute(
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s", [name]
        ).fetchone()
        return 0 if row is None else int(row[0])

    def _show(self, setting: LiteralString) -> str:
        try:
            row = self._connection.execute(sql.SQL("SHOW ") + sql.SQL(setting)).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            return "unknown"
        assert row is not None
        return str(row[0])
