# SPDX-License-Identifier: Apache-2.0
"""The example does its job: migrate, service, command, each a process as a newcomer starts it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tokenize
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import delete_queues
from tests.pages import blocks
from tests.processes import REPOSITORY, TWISTD

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLE = REPOSITORY / "example"
STDLIB = Path(sysconfig.get_path("stdlib"))
SECONDS = 60

pytestmark = pytest.mark.once


class Project:
    """The example with a database of its own."""

    def __init__(self, folder: Path, broker_url: str, source_root: Path) -> None:
        self.folder = folder
        self.database = folder / "example.sqlite3"
        self.environment = {
            **os.environ,
            "CARROT_BROKER_URL": broker_url,
            "EXAMPLE_DATABASE": str(self.database),
            "EXAMPLE_SOURCE_ROOT": str(source_root),
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONIOENCODING": "utf-8",
        }
        self.environment.pop("DJANGO_SETTINGS_MODULE", None)

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``manage.py`` to its end."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=EXAMPLE,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=2 * SECONDS,
            check=False,
        )

    @contextmanager
    def service(self) -> Iterator[None]:
        """Run ``twistd carrot`` for a while; it has to end by SIGTERM with status 0."""
        log = self.folder / "service.log"
        command = [str(TWISTD), "-n", f"--pidfile={self.folder / 'twistd.pid'}"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "carrot", "--settings=library.settings"],
                cwd=EXAMPLE,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Read the database without the help of what is tested."""
        with closing(sqlite3.connect(self.database)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query)]

    def modules(self) -> dict[str, dict[str, Any]]:
        """The rows that tasks have stored, by name of the file."""
        return {row["name"]: row for row in self.rows("select * from library_index_module")}

    def logs(self) -> dict[str, dict[str, Any]]:
        """The MessageLogs, by the file that the task was about."""
        rows = self.rows("select * from carrot_twisted_messagelog")
        return {json.loads(row["task_args"])[0]: row for row in rows}


@pytest.fixture
def empty_broker_url(broker_url: str) -> str:
    """A broker without messages of other tests, whose rows are in another database."""
    delete_queues(broker_url)
    return broker_url


def words(source: bytes) -> list[str]:
    """The tokens of a file. A definition has one "def" or "class", an import one "import"."""
    return [token.string for token in tokenize.tokenize(io.BytesIO(source).readline)]


def test_it_indexes_the_standard_library(empty_broker_url: str, tmp_path: Path) -> None:
    project = Project(tmp_path, empty_broker_url, STDLIB)
    migrated = project.manage("migrate")
    assert migrated.returncode == 0, migrated.stderr

    with project.service():
        first = project.manage("index_stdlib", "--limit=60")
        again = project.manage("index_stdlib", "--limit=60")

    for indexed in (first, again):
        assert indexed.returncode == 0, indexed.stdout + indexed.stderr
        assert "60 of 60 tasks" in indexed.stderr
        told = dict(line.rsplit(maxsplit=1) for line in indexed.stdout.splitlines() if line)
        assert (told["published"], told["completed"], told["failed"]) == ("60", "60", "0")
        assert float(told["tasks per second"]) > 0

    modules = project.modules()
    assert len(modules) == 60
    assert {"__future__.py", "abc.py"} <= modules.keys()
    for name, module in modules.items():
        source = STDLIB.joinpath(name).read_bytes()
        found = words(source)
        assert module["definitions"] == found.count("def") + found.count("class"), name
        assert module["imports"] == found.count("import"), name
        assert module["lines"] == source.replace(b"\r\n", b"\n").count(b"\n"), name
    statuses = project.rows("select status, count(*) n from carrot_twisted_messagelog group by 1")
    assert statuses == [{"status": "COMPLETED", "n": 120}]
    largest = max(modules.values(), key=lambda module: module["definitions"])
    table = first.stdout.partition("The ten largest modules")[2].splitlines()
    assert len(table) == 2 + 10
    assert table[2].split()[0] == f"{largest['definitions']:,}"


@pytest.fixture
def source_root(tmp_path: Path) -> Path:
    """A small source tree with all that can go wrong with a file."""
    root = tmp_path / "source"
    for folder in ("package", "site-packages", "__pycache__"):
        root.joinpath(folder).mkdir(parents=True)
        root.joinpath(folder, "inner.py").write_text("import os, sys\n")
    root.joinpath("empty.py").touch()
    root.joinpath("latin.py").write_bytes(
        b"# -*- coding: latin-1 -*-\n"
        b'"""Caf\xe9."""\n'
        b"from os import path\n"
        b"class Outer:\n"
        b'    """Documented."""\n'
        b"    async def method(self):\n"
        b"        def nested(): import sys\n"
    )
    root.joinpath("escape.py").write_text('pattern = "\\d"\n')
    root.joinpath("old.py").write_text("print 'hello'\n")
    root.joinpath("bad_coding.py").write_bytes(b"# -*- coding: uft-8 -*-\n")
    root.joinpath("not_utf8.py").write_bytes(b'x = "\xe9"\n')
    tmp_path.joinpath("secret.py").write_text("key = 1\n")
    root.joinpath("link.py").symlink_to(tmp_path / "secret.py")
    root.joinpath("README.txt").touch()
    return root


def test_what_is_not_valid_python_fails_with_its_traceback(
    empty_broker_url: str, tmp_path: Path, source_root: Path
) -> None:
    project = Project(tmp_path, empty_broker_url, source_root)
    project.manage("migrate")

    typed = "".join(blocks(EXAMPLE / "README.md", "pycon")).replace("json/decoder.py", "latin.py")
    with project.service():
        indexed = project.manage("index_stdlib")
        looked = project.manage("shell", "-c", re.sub("^>>> ", "", typed, flags=re.MULTILINE))

    assert indexed.returncode == 0, indexed.stdout + indexed.stderr
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "SyntaxError: " in looked.stdout, "the page's traceback"
    modules = project.modules()
    assert modules.keys() == {"empty.py", "escape.py", "latin.py", "package/inner.py"}
    latin = modules["latin.py"]
    assert (latin["lines"], latin["definitions"], latin["imports"]) == (7, 3, 2)
    assert latin["documented"] == 2 / 4
    logs = project.logs()
    told = "latin.py: 3 definitions and 2 imports in 7 lines, 50% documented"
    assert told in logs["latin.py"]["log"]
    assert json.loads(logs["empty.py"]["output"]) == {
        "lines": 0,
        "definitions": 0,
        "imports": 0,
        "documented": 0,
    }

    failed = {name for name, log in logs.items() if log["status"] == "FAILED"}
    assert failed == {"bad_coding.py", "not_utf8.py", "old.py"}
    for name in failed:
        assert "SyntaxError: " in logs[name]["traceback"]
        assert f"  {name}: " in indexed.stdout
    assert "Failed with SyntaxError: 3" in indexed.stdout
    # What others' files make the parser warn about is nobody's news.
    assert "SyntaxWarning" not in tmp_path.joinpath("service.log").read_text()


@pytest.mark.parametrize("path", ["../secret.py", "{folder}/secret.py", "link.py"])
def test_a_task_opens_no_file_outside_the_source_root(
    tmp_path: Path, source_root: Path, path: str
) -> None:
    project = Project(tmp_path, "amqp://nobody@localhost:1/", source_root)
    project.manage("migrate")
    path = path.format(folder=tmp_path)

    called = project.manage(
        "shell", "-c", f"from library_index.tasks import index_file; index_file({path!r})"
    )

    assert called.returncode != 0
    assert f"ValueError: {path} is outside of the source root" in called.stderr
    assert project.modules() == {}


def test_without_a_service_it_tells_what_to_check_and_fails(
    tmp_path: Path, source_root: Path
) -> None:
    project = Project(tmp_path, "amqp://nobody@localhost:1/", source_root)
    project.manage("migrate")

    indexed = project.manage("index_stdlib", "--limit=3", "--timeout=1")

    assert indexed.returncode == 1
    assert "3 tasks had not ended" in indexed.stderr
    assert "twistd -n carrot --settings=library.settings" in indexed.stderr
    assert "waiting                      3" in indexed.stdout
