# SPDX-License-Identifier: Apache-2.0
"""What all unit tests share: no broker, and examples that are the same in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest

from carrot_twisted import publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from carrot_twisted.models import MessageLog
    from carrot_twisted.outbox import Post
    from carrot_twisted.virtual_host import VirtualHost

hypothesis.settings.register_profile(
    "unit",
    # Derandomized: a run that fails will fail again. No database: tests leave no files.
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("unit")


class RecordingPublisher:
    """Stands in for the process's publisher: keeps what it should have sent."""

    def __init__(self) -> None:
        self.rows: list[MessageLog] = []
        self.posts: list[tuple[VirtualHost, Post, Callable[[str | None], None]]] = []

    def submit(self, rows: Sequence[MessageLog], using: str) -> None:
        assert using == "default"
        self.rows.extend(rows)

    def flush(self, timeout: float) -> bool:
        return timeout > 0

    def submit_post(
        self, host: VirtualHost, post: Post, settled: Callable[[str | None], None]
    ) -> None:
        self.posts.append((host, post, settled))

    def alarm(self, host: VirtualHost) -> str | None:
        return None


@pytest.fixture(autouse=True)
def handed_over() -> Iterator[RecordingPublisher]:
    """Rows that were committed and handed over. Without it a commit would start a thread."""
    recording = RecordingPublisher()
    before = publisher.install(recording)
    yield recording
    publisher.install(before)
