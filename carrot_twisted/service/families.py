# SPDX-License-Identifier: Apache-2.0
"""Which metrics there are, and how their samples get Prometheus' form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from carrot_twisted import histograms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Ends of the histograms' buckets, as numbers of ours (``histograms.bucket``), so that each count
#: is exact: 1 ms; 4 ms, doubled up to 8 s; then four times as long each up to half an hour.
BUCKETS = (0, *range(8, 56, histograms.STEPS), 60, 68, 76, 84)

_QUEUE = ("queue",)
_TASK = ("queue", "task")
_MESSAGE = ("queue", "handler")
_CONNECTION = ("broker", "purpose")
_Kind = type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]
#: Every metric, without what Prometheus appends to its name: kind, labels, and what it tells.
CATALOGUE: dict[str, tuple[_Kind, tuple[str, ...], str]] = {
    "carrot_service": (
        GaugeMetricFamily,
        ("worker", "version"),
        "1, with the name and version of this process.",
    ),
    "carrot_ready": (
        GaugeMetricFamily,
        (),
        "1 if each queue is consumed and nothing keeps it from working, as /ready tells; else 0.",
    ),
    "carrot_problems": (GaugeMetricFamily, (), "How many things keep it from working."),
    "carrot_queue_consumed": (
        GaugeMetricFamily,
        _QUEUE,
        "1 if the broker delivers from this queue to this process, or would if it was not paused.",
    ),
    "carrot_coroutines": (GaugeMetricFamily, _QUEUE, "Coroutines that run, beside the threads."),
    "carrot_threads": (GaugeMetricFamily, _QUEUE, "Worker threads."),
    "carrot_threads_busy": (GaugeMetricFamily, _QUEUE, "Worker threads that are at work."),
    "carrot_threads_stuck": (
        GaugeMetricFamily,
        _QUEUE,
        "Worker threads in tasks that have not ended at their time limit.",
    ),
    "carrot_started": (
        CounterMetricFamily,
        _QUEUE,
        "Tasks, or messages, that were begun, repetitions included.",
    ),
    "carrot_tasks_finished": (
        CounterMetricFamily,
        (*_TASK, "outcome"),
        "Tasks that came to their end, written to the database: completed or failed.",
    ),
    "carrot_task_run_seconds": (
        HistogramMetricFamily,
        _TASK,
        "Run times of the tasks that came to their end.",
    ),
    "carrot_task_wait_seconds": (
        HistogramMetricFamily,
        _QUEUE,
        "Times from the publishing of tasks to the start of their last run.",
    ),
    "carrot_messages_decided": (
        CounterMetricFamily,
        (*_MESSAGE, "outcome"),
        "What became of messages with a handler or callback: ack, retry, archive, wait (the "
        "database was in the way), requeue or reject.",
    ),
    "carrot_message_run_seconds": (
        HistogramMetricFamily,
        _MESSAGE,
        "Run times of handlers and callbacks, of messages that are settled for good.",
    ),
    "carrot_connected": (
        GaugeMetricFamily,
        _CONNECTION,
        "1 if the connection to the broker stands; of several, one for each user: all of them.",
    ),
    "carrot_reconnects": (
        CounterMetricFamily,
        _CONNECTION,
        "How often the connection to the broker was made again.",
    ),
    "carrot_messages_published": (
        CounterMetricFamily,
        (),
        "Messages that this process has sent to a broker, repetitions included.",
    ),
    "carrot_messages_confirmed": (
        CounterMetricFamily,
        (),
        "Messages that a broker has confirmed to this process.",
    ),
    "carrot_messages_not_taken": (
        CounterMetricFamily,
        (),
        "Messages that a broker has refused, or that were under way when a connection was lost. "
        "They are sent again.",
    ),
    "carrot_messages_unconfirmed": (
        GaugeMetricFamily,
        (),
        "Messages that a broker has still to confirm to this process.",
    ),
    "carrot_database_away": (GaugeMetricFamily, (), "1 if the database does not answer."),
    "carrot_write_operations": (
        HistogramMetricFamily,
        (),
        "Operations in each batch that is written to the database: claims, results, confirms.",
    ),
    "carrot_tasks_recovered": (
        CounterMetricFamily,
        (),
        "Tasks of dead workers that this process has published again.",
    ),
    "carrot_schedule_lateness_seconds": (
        HistogramMetricFamily,
        (),
        "How long the slots of schedules had passed when this process published their tasks.",
    ),
    "carrot_schedule_overdue_seconds": (
        GaugeMetricFamily,
        (),
        "Seconds since the slot that should have been published first; 0: none is overdue. Of the "
        "whole database.",
    ),
    "carrot_queue_waiting": (
        GaugeMetricFamily,
        _QUEUE,
        "Tasks that wait, as of the last sample. Of the whole database.",
    ),
    "carrot_queue_running": (
        GaugeMetricFamily,
        _QUEUE,
        "Tasks that run, as of the last sample. Of the whole database.",
    ),
    "carrot_queue_limited": (
        GaugeMetricFamily,
        _QUEUE,
        "Waiting tasks that their limits of concurrency or rate do not let start, as of the last "
        "sample. Of the whole database.",
    ),
    "carrot_queue_oldest_seconds": (
        GaugeMetricFamily,
        _QUEUE,
        "Seconds since the oldest waiting task was published, or due, as of the last sample; not "
        "of those that are limited; 0: none waits. Of the whole database.",
    ),
    "carrot_queue_unsent": (
        GaugeMetricFamily,
        _QUEUE,
        "Waiting tasks whose message the broker should have by now, and has not, as of the last "
        "sample. Of the whole database.",
    ),
    "carrot_queue_unsent_oldest_seconds": (
        GaugeMetricFamily,
        _QUEUE,
        "Seconds since the oldest of these was due; 0: there is none. Of the whole database.",
    ),
    "carrot_sample_age_seconds": (
        GaugeMetricFamily,
        (),
        "Seconds since the minute of that sample began, which some service takes each minute.",
    ),
}


def family(name: str, samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    """A counter or gauge of the catalogue.

    Args:
        name: of the metric.
        samples: the texts of its labels, and the number; each combination of texts once.
    """
    kind, labels, text = CATALOGUE[name]
    found: Any = kind(name, text, labels=labels)
    for values, number in samples:
        found.add_metric(values, float(number))
    return found  # type: ignore[no-any-return]


def durations(
    name: str, samples: Iterable[tuple[Sequence[str], Mapping[int, int], float]]
) -> Metric:
    """A histogram of times.

    Args:
        name: of the metric.
        samples: the texts of its labels, a histogram of ours, and the sum of the times in seconds.
    """
    ends = [*(f"{histograms.end(number):g}" for number in BUCKETS), "+Inf"]
    return histogram(
        name,
        [(values, ends, _sorted_in(given), total) for values, given, total in samples],
    )


def _sorted_in(given: Mapping[int, int]) -> list[int]:
    """The counts of BUCKETS, and of what is beyond them."""
    counts = [0] * (len(BUCKETS) + 1)
    for number, count in given.items():
        position = next((i for i, end in enumerate(BUCKETS) if number <= end), len(BUCKETS))
        counts[position] += count
    return counts


def histogram(
    name: str, samples: Iterable[tuple[Sequence[str], Sequence[str], Sequence[int], float]]
) -> Metric:
    """Any histogram.

    Args:
        name: of the metric.
        samples: the texts of its labels; the upper ends of its buckets, the last of which is
            "+Inf"; how much is in each of them; and the sum.
    """
    kind, labels, text = CATALOGUE[name]
    found: Any = kind(name, text, labels=labels)
    for values, ends, counts, total in samples:
        # Prometheus' buckets hold all that the smaller ones do.
        sums, so_far = [], 0
        for end, count in zip(ends, counts, strict=True):
            so_far += count
            sums.append((end, so_far))
        found.add_metric(values, sums, total)
    return found  # type: ignore[no-any-return]
