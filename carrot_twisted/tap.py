# SPDX-License-Identifier: Apache-2.0
"""``twistd carrot``: what its options make, before anything runs.

``makeService`` runs before twistd becomes a daemon and gives up root: it touches neither Django
nor a socket nor a thread.

twistd's own handling of its pid file has races, believes whatever number stands in the file, and
follows links: it is told that there is none, and the service holds that file (``PidFile``).
"""

from __future__ import annotations

import os
import re
from typing import Any

from txaio.tx import set_global_log_level

from carrot_twisted.carrot_service import CarrotService
from carrot_twisted.service import following, json_log
from carrot_twisted.service.guise import Guise
from carrot_twisted.service.pid_file import PidFile
from carrot_twisted.service_options import Options
from carrot_twisted.workers_service import WorkersService

__all__ = ["Options", "makeService"]


def makeService(options: Options) -> CarrotService | WorkersService:
    """What twistd runs. Nothing of Django is imported yet."""
    number = following.own_number()
    alone = number is not None or options["workers"] == 1
    # What workers tell was chosen by them already.
    set_global_log_level(options["loglevel"] if alone else "info")
    twistd = options.parent
    guise = _guise(twistd)
    log_file = _log_file(twistd)
    try:
        if log_file is not None:
            _require_writable(log_file)
        json_log.path = log_file
        pid_file = _hold(options.pid_path)
    except BaseException:
        if guise is not None:
            guise.drop()
        raise
    if not alone:
        return WorkersService(
            count=options["workers"],
            arguments=options.arguments,
            folder=options.folder,
            settings_module=options["settings"],
            pid_file=pid_file,
            guise=guise,
        )
    return CarrotService(
        settings_module=options["settings"],
        options={
            "queues": tuple(options["queues"]),
            "concurrency": options["concurrency"],
            "shutdown_timeout": options["shutdown-timeout"],
            "scheduler": not options["no-scheduler"],
            "consumer_class": options["consumer-class"],
            "max_tasks": options["max-tasks"],
            "max_memory": options["max-memory"],
        },
        folder=options.folder,
        nodaemon=bool(twistd is None or twistd["nodaemon"]),
        log_file=log_file,
        pid_file=pid_file,
        guise=guise,
        consume=options.consume,
        # Only one of several can have the port.
        web=options["web"] if number in (None, 1) else None,
        number=number,
        http=None if options["http"] is None else port_of(options["http"], number or 1),
    )


def port_of(endpoint: str, number: int) -> str:
    """The endpoint of one of several processes: the first one's port, or one of the next ones.

    Args:
        endpoint: of Twisted's, for example "tcp:9090:interface=127.0.0.1".
        number: of the process, from 1.
    """

    def later(found: re.Match[str]) -> str:
        port = int(found[2])
        # 0: one that is free.
        return f"{found[1]}{port + number - 1 if port else 0}"

    return re.sub(r"^(\w+:(?:port=)?)(\d+)", later, endpoint)


def _guise(twistd: Any) -> Guise | None:
    # Changing the root folder needs root, and comes before privilegedStartService.
    if twistd is None or twistd.get("uid") is None or twistd.get("chroot") or os.geteuid():
        return None
    return Guise(twistd["uid"], twistd.get("gid"))


def _log_file(twistd: Any) -> str | None:
    """The file that twistd logs to; None: standard output, or no file at all."""
    if twistd is None or twistd.get("syslog"):
        return None
    if twistd.get("logger") not in (None, json_log.observer):
        return None
    name = twistd.get("logfile")
    if name == "-" or (not name and (twistd["nodaemon"] or twistd.get("debug"))):
        return None
    return os.path.abspath(name or "twistd.log")


def _require_writable(path: str) -> None:
    """twistd itself would tell by a traceback, and wait for ever for the reader of a named pipe."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666))
    except OSError as error:
        raise SystemExit(
            f"The log file {path} cannot be written as user {os.geteuid()} ({error.strerror}). "
            "Give twistd another --logfile, or change the owner of that file and its folder."
        ) from error


def _hold(path: str) -> PidFile | None:
    """Lock the pid file, so that a second service does not start beside this one."""
    if not path:
        return None
    pid_file = PidFile(path)
    try:
        if not pid_file.take(create=True):
            raise SystemExit(
                f"carrot runs already, as process {pid_file.read() or 'that is just starting'}. "
                f"For a second service give twistd another --pidfile than {pid_file.path}"
            )
        pid_file.read()
    except ValueError as error:
        raise SystemExit(f"{error}: is it the right --pidfile? It is left as it is.") from error
    except OSError as error:
        raise SystemExit(
            f"The pid file {pid_file.path} cannot be written as user {os.geteuid()} "
            f"({error.strerror}). Give twistd another --pidfile."
        ) from error
    pid_file.write(os.getpid())
    return pid_file
