# SPDX-License-Identifier: Apache-2.0
"""Root starts the service for another user (``twistd --uid``): its files are that user's at once.

twistd opens its log as root, before it changes the user. So it would follow a link that the user
has laid there, and leave a file that the user cannot rotate. With this, the process touches files
as that user already while twistd starts; what needs root, such as changing the user for good,
comes after ``drop``.
"""

from __future__ import annotations

import os
import pwd


class Guise:
    """Acts as another user until dropped. For root only.

    Args:
        uid: of that user.
        gid: group; by default the user's own.
    """

    def __init__(self, uid: int, gid: int | None) -> None:
        self._before = (os.geteuid(), os.getegid(), os.getgroups())
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            # A number without a name, as in a container. twistd wants a --gid with it.
            os.setgroups([])
        else:
            gid = user.pw_gid if gid is None else gid
            os.initgroups(user.pw_name, gid)
        if gid is not None:
            os.setegid(gid)
        os.seteuid(uid)

    def drop(self) -> None:
        """Be root again."""
        uid, gid, groups = self._before
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)
