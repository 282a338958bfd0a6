# SPDX-License-Identifier: Apache-2.0
"""Root acts as another user while twistd starts: what it asks of the kernel, and in which order."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING, Any

import pytest
from twisted.python import usage

from carrot_twisted import tap
from carrot_twisted.service.guise import Guise
from carrot_twisted.tap import Options, makeService

if TYPE_CHECKING:
    from pathlib import Path

Calls = list[tuple[Any, ...]]
BECOME_ROOT = [("seteuid", 0), ("setegid", 0), ("setgroups", [0, 7])]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What is asked of the kernel, in order."""
    calls: Calls = []
    for name in ("initgroups", "setgroups", "setegid", "seteuid"):
        monkeypatch.setattr(os, name, lambda *given, name=name: calls.append((name, *given)))
    # txaio's level is the whole process's.
    monkeypatch.setattr(tap, "set_global_log_level", lambda level: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 0)
    monkeypatch.setattr(os, "getgroups", lambda: [0, 7])

    def getpwuid(uid: int) -> Any:
        if uid != 1000:
            raise KeyError(uid)
        return pwd.struct_passwd(("ada", "x", 1000, 1001, "", "/home/ada", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    return calls


@pytest.mark.parametrize(
    ("uid", "gid", "wanted"),
    [
        (1000, None, [("initgroups", "ada", 1001), ("setegid", 1001), ("seteuid", 1000)]),
        (1000, 5, [("initgroups", "ada", 5), ("setegid", 5), ("seteuid", 1000)]),
        (4711, 5, [("setgroups", []), ("setegid", 5), ("seteuid", 4711)]),
    ],
)
def test_groups_go_first_and_come_back_last(
    calls: Calls, uid: int, gid: int | None, wanted: Calls
) -> None:
    """Only root may change groups; who kept root's could write root's files."""
    guise = Guise(uid, gid)
    assert calls == wanted
    calls.clear()
    guise.drop()
    assert calls == BECOME_ROOT


def options(tmp_path: Path, **given: Any) -> Options:
    twistd, result = usage.Options(), Options()
    twistd.update(nodaemon=True, pidfile=str(tmp_path / "pid"), logfile=None, **given)
    result.parent = twistd
    result.parseOptions(["--settings=x"])
    return result


def test_root_is_back_when_twistd_is_about_to_change_the_user(calls: Calls, tmp_path: Path) -> None:
    service = makeService(options(tmp_path, uid=1000, gid=None))
    assert calls[-1] == ("seteuid", 1000)
    calls.clear()
    service.privilegedStartService()
    assert calls == BECOME_ROOT
    assert service._pid_file is not None
    service._pid_file.release()


def test_root_is_back_when_the_start_fails(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "pid").mkdir()
    with pytest.raises(SystemExit):
        makeService(options(tmp_path, uid=1000, gid=None))
    assert calls[-3:] == BECOME_ROOT


@pytest.mark.parametrize("given", [{}, {"uid": None}, {"uid": 1000, "chroot": "/srv"}])
def test_without_another_user_nothing_is_asked(
    calls: Calls, tmp_path: Path, given: dict[str, Any]
) -> None:
    service = makeService(options(tmp_path, **given))
    service.privilegedStartService()
    assert calls == []
    if service._pid_file is not None:
        service._pid_file.release()


def test_nor_of_somebody_who_is_not_root(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    service = makeService(options(tmp_path, uid=1000))
    assert calls == []
    assert service._pid_file is not None
    service._pid_file.release()
