# SPDX-License-Identifier: Apache-2.0
"""A pid file that a living service holds locked.

The number in a pid file proves nothing: its process may be gone, and the number may be another
program's by now. A lock of the kernel's ends with its process, however that ends. So a service
runs if, and only if, its file is locked. The lock belongs to the open file: a daemon inherits it
from the command that starts it, without a gap.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress


class PidFile:
    """One pid file, for the service that holds it and for those who look at it.

    Args:
        path: a relative one starts in the current folder.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._descriptor: int | None = None

    def take(self, create: bool = False) -> bool:
        """Lock the file, without waiting, until ``release`` or the end of the process.

        Args:
            create: make the file if it is missing.

        Returns:
            False if a living process holds it. Ask again as often as you like: it is the same
            file that is asked, also when it was removed meanwhile.

        Raises:
            OSError: the file is missing, may not be opened, or is no regular file.
        """
        flags = os.O_RDWR | os.O_CREAT if create else os.O_RDONLY
        while True:
            if self._descriptor is None:
                self._descriptor = self._open(flags)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not create or self._is_current():
                return True
            # Its owner removed it between the two calls: the lock would protect nothing.
            self.release()

    def read(self) -> int | None:
        """The pid in the file; None if the file is missing or empty.

        Raises:
            OSError: it may not be read, or is no regular file.
            ValueError: it holds something else. Perhaps it is no pid file at all.
        """
        try:
            descriptor = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            text = file.read(64).strip()
        if text and not (text.isdigit() and int(text)):
            raise ValueError(f"{self.path} holds something else than the number of a process")
        return int(text) if text else None

    def write(self, pid: int) -> None:
        """Put a pid into the file that was taken with ``create``."""
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{pid}\n".encode(), 0)

    def is_open_in(self, pid: int) -> bool:
        """Whether a process has the file open that was looked at; also if that cannot be seen.

        Everybody who may read the file can lock it, for a moment or on purpose: the lock alone does
        not say that the number in the file is that of its owner.
        """
        assert self._descriptor is not None
        folder = f"/proc/{pid}/fd"
        try:
            numbers = os.listdir(folder)
        except OSError:
            return not os.path.exists("/proc/self") or os.path.exists(f"/proc/{pid}")
        own = os.fstat(self._descriptor)
        for number in numbers:
            # It may have been closed meanwhile.
            with suppress(OSError):
                if os.path.samestat(own, os.stat(f"{folder}/{number}")):
                    return True
        return False

    def remove(self) -> None:
        """Delete the file, if it is the one that was taken."""
        # In a folder where we may not delete it stays: without lock it counts as left behind.
        with suppress(FileNotFoundError, PermissionError):
            if self._is_current():
                os.unlink(self.path)

    def release(self) -> None:
        """Close the file. The lock ends once no process that inherited it is left."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def let_go_in_children(self) -> None:
        """Forks of this process, as of ``multiprocessing``, shall not outlive it as its lock."""
        os.register_at_fork(after_in_child=self.release)

    def _open(self, flags: int) -> int:
        """Open the file itself: in a folder that others may write to it may be a trap by now."""
        try:
            # Without O_NONBLOCK a named pipe would keep us waiting.
            descriptor = os.open(self.path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(
                    errno.ELOOP, "it is a symbolic link, and is not followed", self.path
                ) from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is no regular file", self.path)
        return descriptor

    def _is_current(self) -> bool:
        assert self._descriptor is not None
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        return False
