# SPDX-License-Identifier: Apache-2.0
"""How huey does each step."""

from __future__ import annotations

from benchmarks.probe import Rows, Site, main
from benchmarks.redis import FIRST_START
from benchmarks.settings import QUEUE


class HueySite(Site):
    """huey's own calls. Each publish returns when Redis has the task; a result is a row's stead."""

    def __init__(self) -> None:
        # Importable only now, after django.setup().
        from huey.contrib.djhuey import HUEY
        from huey.utils import Error

        from benchmarks.site_huey.tasks import publish

        self._publish = publish
        self._huey = HUEY
        self._error = Error

    def publish(self, task: str) -> None:
        self._publish(task)

    def count_final(self) -> int:
        return int(self._huey.storage.result_store_size())

    def rows(self) -> Rows:
        results = self._huey.storage.result_items().values()
        failed = sum(
            isinstance(self._huey.serializer.deserialize(result), self._error) for result in results
        )
        first = self._huey.storage.conn.get(FIRST_START.format(QUEUE))
        return Rows(
            total=len(results),
            confirmed=0,
            succeeded=len(results) - failed,
            first_start=float(first) if first else None,
            repeats=None,
        )


if __name__ == "__main__":
    main(HueySite)
