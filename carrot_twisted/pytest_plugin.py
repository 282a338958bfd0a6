# SPDX-License-Identifier: Apache-2.0
"""The fixture ``carrot`` for the tests of projects. pytest loads this module in all of them.

So it imports nothing of the package, and nothing of Django, before a test asks for the fixture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from carrot_twisted.testing import InMemory


@pytest.fixture
def carrot() -> Iterator[InMemory]:
    """Tasks stay in memory, and run when the test says: ``carrot_twisted.testing.in_memory()``."""
    from carrot_twisted import testing

    with testing.in_memory() as carrot:
        yield carrot
