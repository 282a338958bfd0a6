# SPDX-License-Identifier: Apache-2.0
"""One chaos run, from the start of the servers to the oracle's word."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from devtools.servers import temporary_folder
from devtools.steps import say, step
from tests.chaos import collecting, limits, oracle
from tests.chaos.injector import Injector
from tests.chaos.places import PublisherPlace, ServicePlace
from tests.chaos.report import Report
from tests.chaos.schedule import INTERRUPTING, schedule
from tests.chaos.stage import Stage
from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.chaos.schedule import Fault, Plan

SECONDS_BETWEEN_LINES = 10
#: Seconds that messages may stay at the broker when all rows are final.
SECONDS_TO_EMPTY = 60


class Run:
    """One run.

    Args:
        plan: what is to happen.
        patience: seconds from the last fault until every row must be final.
        sabotage: a defect for all services and publishers to have, or "".
        keep: copy logs and ledgers to this folder.
    """

    def __init__(self, plan: Plan, patience: float, sabotage: str, keep: Path | None) -> None:
        self._plan = plan
        self._patience = patience
        self._sabotage = sabotage
        self._keep = keep
        self._begin = time.monotonic()
        self._last_line = 0.0
        self._services: list[ServicePlace] = []
        self._publishers: list[PublisherPlace] = []

    def perform(self) -> Report:
        """Do it all; returns the report.

        Raises:
            RuntimeError: the run itself went wrong, which says nothing about the product.
        """
        faults = schedule(self._plan)
        say(f"==> The schedule of seed {self._plan.seed}:")
        for fault in faults:
            say(f"    {fault}")
        with temporary_folder("carrot-chaos-") as folder:
            stage = Stage(self._plan, folder, self._sabotage)
            try:
                with step("Starting broker, database and proxies"):
                    stage.__enter__()
                return self._on(stage, faults)
            finally:
                stage.__exit__()
                if self._keep is not None:
                    shutil.copytree(
                        folder,
                        self._keep,
                        ignore=shutil.ignore_patterns("rabbitmq", "postgresql"),
                        dirs_exist_ok=True,
                    )

    def _on(self, stage: Stage, faults: Sequence[Fault]) -> Report:
        plan = self._plan
        shares = [
            plan.tasks // plan.publishers + (n < plan.tasks % plan.publishers)
            for n in range(plan.publishers)
        ]
        self._services = [ServicePlace(n, stage) for n in range(plan.services)]
        self._publishers = [PublisherPlace(n, share, plan, stage) for n, share in enumerate(shares)]
        injector = Injector(stage, self._services, self._publishers)
        with ExitStack() as stack:
            places: list[ServicePlace | PublisherPlace] = [*self._services, *self._publishers]
            for place in places:
                stack.callback(place.end)
            stack.callback(injector.stop)
            for service in self._services:
                service.start()
            self._wait_for_services()
            for publisher in self._publishers:
                publisher.start()
            injector.start(faults)
            while injector.busy or not all(p.done for p in self._publishers):
                self._tend(stage, injector)
                if injector.errors:
                    raise RuntimeError(f"a fault could not be done: {injector.errors}")
            calm = time.time()
            in_time = self._settle(stage)
            seconds_to_final = max(0.0, collecting.last_end(stage) - calm) if in_time else None
            facts = [service.finish() for service in self._services]
            evidence = collecting.collect(
                stage,
                starts=limits.starts(plan),
                poison=injector.poison,
                services=facts,
                unexpected_ends=[end for place in places for end in place.unexpected_ends],
                seconds_to_final=seconds_to_final,
                interrupting=sum(one.fault.kind in INTERRUPTING for one in injector.done),
            )
        return Report(
            plan=plan,
            faults=injector.done,
            evidence=evidence,
            violations=oracle.judge(evidence),
            seconds=time.monotonic() - self._begin,
            sabotage=self._sabotage,
        )

    def _wait_for_services(self) -> None:
        def all_consume() -> bool:
            for place in self._services:
                place.tend()
                if place.unexpected_ends:
                    raise RuntimeError(f"a service does not start: {place.unexpected_ends}")
            return all(place.consuming for place in self._services)

        with step("Starting services"):
            wait_until(all_consume, 60, "all services consume")

    def _tend(self, stage: Stage, injector: Injector) -> None:
        for place in self._publishers:
            place.tend()
        # A service's place is busy while it is frozen or stops: its lane sees to it.
        if "services" not in injector.now:
            for service in self._services:
                service.tend()
        now = ", ".join(str(fault)[8:].strip() for fault in tuple(injector.now.values()))
        self._tell(stage, now)
        time.sleep(0.5)

    def _tell(self, stage: Stage, what: str) -> None:
        """A line now and then."""
        now = time.monotonic()
        if now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            committed, effects = (
                sum(word in line for line in path.open("rb")) if path.exists() else 0
                for path, word in ((stage.publishes, b'"committed"'), (stage.effects, b"uuid"))
            )
            say(
                f"    {now - self._begin:4.0f} s  {committed} published, {effects} effects"
                + (f"; {what}" if what else "")
            )

    def _settle(self, stage: Stage) -> bool:
        """Wait until all rows are final and all messages gone; False if the rows took too long."""
        say("==> All faults are over, all tasks are published; waiting for the rest")
        end = time.monotonic() + self._patience
        in_time = False
        while not in_time and time.monotonic() < end:
            for service in self._services:
                service.tend()
            in_time = collecting.unfinished(stage) == 0
            self._tell(stage, "")
            time.sleep(0.5)
        end = time.monotonic() + SECONDS_TO_EMPTY
        while in_time and time.monotonic() < end:
            held = collecting.queues(stage)
            if not any(sum(n) for name, n in held.items() if not name.endswith(".dead")):
                break
            time.sleep(0.5)
        return in_time
