# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry, set up for one test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from carrot_twisted import tracing

if TYPE_CHECKING:
    import pytest
    from opentelemetry.sdk.trace import ReadableSpan


class Spans:
    """What is told to OpenTelemetry."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self.tracer = provider.get_tracer(__name__)
        # Of the whole process, where it could be set but once.
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
        monkeypatch.setattr(tracing, "_tracer", self.tracer)

    def take(self) -> list[ReadableSpan]:
        """All that have ended since the last call."""
        found = list(self._kept.get_finished_spans())
        self._kept.clear()
        return found
