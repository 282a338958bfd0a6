# SPDX-License-Identifier: Apache-2.0
"""A project's own handlers can say which task has logged a line."""

from __future__ import annotations

import io
import logging
import sys
from logging.config import dictConfig
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from carrot_twisted import execution, log_fields
from carrot_twisted.execution import Limits, Run
from tests.pages import TOP, blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "tests.project.tasks"


@pytest.fixture
def out(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What the page's handler writes, for the logger of the tests' tasks."""
    monkeypatch.setattr(execution, "clean_connections", lambda: None)
    (text,) = (t for t in blocks(TOP / "docs" / "logs.md", "python") if "TaskFields" in t)
    names: dict[str, Any] = {}
    exec(text, names)  # noqa: S102 - it is ours
    config = names["LOGGING"]
    out = io.StringIO()
    config["handlers"]["console"]["stream"] = out
    config["loggers"] = {NAME: {"handlers": ["console"], "propagate": False}}
    del config["root"]
    dictConfig({**config, "incremental": False})
    yield out
    logging.getLogger(NAME).handlers.clear()
    logging.getLogger(NAME).propagate = True


def test_a_line_tells_its_task_its_row_and_the_attempt(out: io.StringIO) -> None:
    key = uuid4()
    run = Run(
        uuid=key,
        token=1,
        task=f"{NAME}.fail",
        task_args='["x"]',
        content="{}",
        queue="mail",
        attempt=3,
        published=0.0,
        header=f"{NAME}.fail",
        body=b'{"args": ["x"]}',
    )
    execution.execute(run, Limits(result=100, log=1000))
    assert out.getvalue().endswith(f"{NAME}.fail {key} mail 3: about to fail\n")


def test_outside_of_tasks_there_is_nothing_to_tell(
    out: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger(NAME).warning("one")
    # As in a web process.
    monkeypatch.delitem(sys.modules, log_fields._RUNNING)
    logging.getLogger(NAME).warning("two")
    assert [line.rpartition("WARNING")[2] for line in out.getvalue().splitlines()] == [
        "    : one",
        "    : two",
    ]
