# SPDX-License-Identifier: Apache-2.0
"""A service ends, in time and cleanly, whatever it is doing: every state once.

``python3 run.py stops`` does the same many times over, at random moments.
"""

from __future__ import annotations

import random
import signal
from typing import TYPE_CHECKING

import pytest

from tests.conftest import kind_of_database
from tests.stops.arena import Arena, run
from tests.stops.states import STATES

if TYPE_CHECKING:
    from pathlib import Path

    from devtools.servers import RabbitMQ
    from tests.nursery import Nursery


@pytest.fixture(scope="session")
def broker_url(private_broker: RabbitMQ) -> str:
    """Some of these tests stop the broker."""
    return private_broker.url


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            state.name,
            marks=[
                *([pytest.mark.once] if state.once else []),
                *([pytest.mark.only(state.only)] if state.only else []),
            ],
        )
        for state in STATES.values()
    ],
)
def test_a_signal_ends_a_service(
    name: str,
    request: pytest.FixtureRequest,
    private_broker: RabbitMQ,
    nursery: Nursery,
    tmp_path: Path,
) -> None:
    postgres = kind_of_database() == "postgres"
    arena = Arena(
        folder=tmp_path,
        broker=private_broker,
        postgres=request.getfixturevalue("postgres") if postgres else None,
        launch=nursery.start,
        chance=random.Random(name),
        count=1,
    )
    _, wrong = run(STATES[name], arena, [signal.SIGTERM])
    assert not wrong
