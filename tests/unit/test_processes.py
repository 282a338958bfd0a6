# SPDX-License-Identifier: Apache-2.0
"""Which process is which, read from a /proc that the test has written."""

from __future__ import annotations

import os
import resource
import sys
from typing import TYPE_CHECKING

import pytest

from carrot_twisted import processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty /proc."""
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    processes.machine.cache_clear()
    yield tmp_path
    processes.machine.cache_clear()


def process(proc: Path, pid: int, state: str = "S", start: str = "4711", name: str = "x") -> None:
    (proc / str(pid)).mkdir()
    fields = [state, *("0" for _ in range(18)), start, "99"]
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")


def test_a_process_is_known_by_its_start(proc: Path) -> None:
    process(proc, 7, start="4711")
    assert processes.start_of(7) == "4711"


@pytest.mark.parametrize("name", ["a b", "a) R 1 2", "(((", ")"])
def test_whatever_its_command_is_called(proc: Path, name: str) -> None:
    process(proc, 7, start="4711", name=name)
    assert processes.start_of(7) == "4711"


def test_one_that_is_not_there_has_none(proc: Path) -> None:
    assert processes.start_of(7) == ""


@pytest.mark.parametrize("state", ["Z", "X"])
def test_one_that_has_ended_has_none(proc: Path, state: str) -> None:
    process(proc, 7, state)
    assert processes.start_of(7) == ""


def test_a_machine_is_its_boot_and_its_process_namespace(proc: Path) -> None:
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text("boot-1\n")
    (proc / "self/ns").mkdir(parents=True)
    os.symlink("pid:[4026531836]", proc / "self/ns/pid")
    assert processes.machine() == "boot-1 pid:[4026531836]"


def test_where_that_is_not_told_it_is_unknown(proc: Path) -> None:
    assert processes.machine() == ""


def test_the_memory_in_use_is_read_in_pages(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (proc / "self").mkdir(exist_ok=True)
    (proc / "self" / "statm").write_text("9999 512 1 1 0 1 0\n")
    monkeypatch.setattr(resource, "getpagesize", lambda: 4096)
    assert processes.memory() == 2.0


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1024 * 1024)])
def test_without_proc_it_is_the_most_that_ever_was(
    proc: Path, platform: str, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert processes.memory() >= most / unit > 0
