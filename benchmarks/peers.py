# SPDX-License-Identifier: Apache-2.0
"""Whom we compare with and install apart, since it pins what we use, too.

Standard library only: it is read before anything is installed.
"""

from __future__ import annotations

FEDORA = "fedora-messaging"
REQUIREMENT = f"{FEDORA}>=3.9"
FLOWER = "flower"
FLOWER_REQUIREMENT = f"{FLOWER}>=2.0"
