# SPDX-License-Identifier: Apache-2.0
"""What celery-message-consumer 1.2.1 does, line by line, and the tests that show what ours does.

Each line is shown by tests, or is told in docs/handlers.md, or the guide for those who move, to be
otherwise. This file sees to it that none is forgotten, and that the tests it names are there.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = "\n".join(
    (TESTS.parent / "docs" / page).read_text(encoding="utf-8")
    for page in ("handlers.md", "migrating-from-celery-message-consumer.md")
)

_REGISTERED = "unit/test_handlers.py::"
_SETTINGS = "unit/test_handler_settings.py::"
_DECIDED = "unit/test_retry.py::"
_COPIED = "unit/test_copying.py::"
_DISPATCHED = "unit/test_message_dispatcher.py::"
_SERVED = "integration/test_handlers.py::"
_TROUBLED = "integration/test_handler_trouble.py::"

#: What it promises, and does: ours does the same.
BEHAVIOUR: dict[str, tuple[str, ...]] = {
    # The decorator.
    "four arguments, in that order": (
        f"{_REGISTERED}test_arguments_are_the_originals_in_its_order",
    ),
    "the function is returned unchanged; without an exchange the queue is bound to nothing": (
        f"{_REGISTERED}TestNames::test_by_default_the_queue_is_called_like_the_key_and_bound_to_nothing",
    ),
    "several routing keys, in any iterable: a queue for each": (
        f"{_REGISTERED}TestNames::test_each_key_has_a_queue_whatever_iterable_they_come_in",
    ),
    "wildcards are passed on, and are the queue's name": (
        f"{_REGISTERED}TestNames::test_a_name_of_its_own_and_wildcards",
        f"{_SERVED}test_a_retried_message_keeps_what_it_came_with",
    ),
    "the prefix is for queues without a name of their own": (
        f"{_REGISTERED}TestNames::test_the_prefix_is_for_queues_without_a_name_of_their_own",
    ),
    "the exchange is a key of the settings; 'default' is the nameless one, unless it is a key": (
        f"{_REGISTERED}TestNames::test_an_exchange_called_default_takes_the_place_of_the_nameless_one",
    ),
    "queue_arguments are the work queue's, not the retry queues' and the archive's": (
        f"{_COPIED}TestLayout::test_arguments_of_the_handler_are_the_work_queues_only",
    ),
    "refused: a name or a prefix without an exchange": (
        f"{_REGISTERED}TestRefused::test_a_name_or_a_prefix_without_an_exchange",
    ),
    "refused: a name for several keys": (
        f"{_REGISTERED}TestRefused::test_one_name_for_several_keys",
    ),
    "refused: a second handler of a queue": (
        f"{_REGISTERED}TestRefused::test_a_second_handler_of_a_queue_and_nothing_is_half_registered",
        f"{_REGISTERED}TestRefused::test_the_same_key_twice",
    ),
    "an exchange that is not in the settings is found out when the consumers are made": (
        f"{_REGISTERED}test_an_exchange_that_is_not_in_the_settings_is_told_when_the_service_starts",
    ),
    "a handler is registered by the import of its module; the settings name such modules": (
        f"{_REGISTERED}TestDiscovery::test_modules_of_apps_and_of_the_settings_are_found",
    ),
    "a handler gets the body": (f"{_REGISTERED}TestCalls::test_the_body",),
    "what it returns is not used": (f"{_DISPATCHED}test_what_a_handler_returns_is_not_used",),
    # Queues.
    "three kinds of queues, durable, and how they lead to each other": (
        f"{_COPIED}TestLayout::test_a_classic_queue_has_the_originals_layout_but_for_the_retries",
    ),
    "the archive keeps 24 days and a million messages": (
        f"{_SETTINGS}test_the_defaults_are_the_originals",
        f"{_SERVED}test_the_queues_of_the_original_are_used_as_they_are",
    ),
    "exchanges are kombu's: durable, direct by default": (
        f"{_SETTINGS}test_exchanges_have_kombus_defaults",
        f"{_COPIED}TestLayout::test_exchanges_are_declared_before_their_bindings_once_each",
    ),
    # Delivery, retry, archive.
    "a message is acknowledged when its handler has returned": (
        f"{_DISPATCHED}test_a_message_is_acknowledged_when_its_handler_has_returned",
    ),
    "five attempts, after 0.2, 1, 60 and 1800 seconds, then the archive": (
        f"{_DECIDED}test_there_are_five_attempts_with_growing_delays_then_the_archive",
        f"{_DECIDED}test_further_retries_have_the_last_delay",
    ),
    "PermanentFailure archives at once": (
        f"{_DECIDED}test_a_permanent_failure_is_archived_at_once",
        f"{_SERVED}test_what_no_retry_can_help_is_archived_at_once_and_nothing_stops_the_service",
    ),
    "a copy comes before the acknowledgement; a failed one leaves the message in its queue": (
        f"{_DISPATCHED}test_what_fails_is_acknowledged_when_the_broker_has_the_copy",
        f"{_SERVED}test_kill_9_repeats_a_message_and_loses_none",
    ),
    "retries are counted in a header of its own": (
        f"{_COPIED}test_the_retries_are_counted_in_the_header_of_the_settings",
    ),
    "BACKOFF_FUNC gets the retries so far": (
        f"{_DECIDED}test_the_projects_backoff_function_gets_the_retries_so_far",
        f"{_REGISTERED}test_a_backoff_function_by_its_path",
    ),
    "messages that wait in its retry queue, and its archives, are used": (
        f"{_SERVED}test_the_queues_of_the_original_are_used_as_they_are",
    ),
    "USE_DJANGO: an aborted transaction is not the next message's": (
        f"{_TROUBLED}test_a_transaction_that_a_handler_leaves_aborted_is_not_the_next_ones",
    ),
    # Bodies.
    "JSON; text where no type, application/data or application/text is said; '' for no JSON": (
        f"{_REGISTERED}TestContent::test_is_read_as_the_original_does",
    ),
    "SERIALIZER and ACCEPT": (
        f"{_SETTINGS}test_another_serializer_is_accepted",
        f"{_REGISTERED}TestContent::test_other_types_if_they_are_accepted",
    ),
    # Settings.
    "its settings are read where they are": (
        f"{_SETTINGS}TestFromTheOriginal::test_its_django_settings_are_read",
    ),
    "EVENT_CONSUMER_APP_CONFIG and EVENT_CONSUMER_CONFIG_NAMESPACE": (
        f"{_SETTINGS}TestFromTheOriginal::test_another_module_and_another_prefix",
        f"{_SETTINGS}TestFromTheOriginal::test_an_object_in_a_module",
        f"{_SETTINGS}TestFromTheOriginal::test_one_that_is_not_there_is_told",
    ),
    "PREFETCH_COUNT may be fixed": (
        "unit/test_prefetch.py::test_a_number_from_the_settings_is_kept_whatever_is_measured",
    ),
    "a stop lets handlers end": (
        f"{_SERVED}test_a_stop_waits_for_handlers_and_returns_what_waits",
    ),
}

#: What goes wrong with it: ours does better.
DEFECTS: dict[str, tuple[str, ...]] = {
    "no routing key: nothing is registered, in silence": (
        f"{_REGISTERED}TestRefused::test_no_routing_key",
    ),
    "bytes as a routing key: TypeError": (
        f"{_REGISTERED}TestRefused::test_what_is_no_routing_key",
    ),
    "a name of '' makes retries that never come back": (
        f"{_REGISTERED}TestRefused::test_a_name_that_makes_no_names_for_the_other_queues",
    ),
    "a list with a duplicate registers a part": (
        f"{_REGISTERED}TestRefused::test_a_second_handler_of_a_queue_and_nothing_is_half_registered",
    ),
    "one queue for two exchanges: each handler gets the other's messages": (
        f"{_REGISTERED}TestRefused::test_two_handlers_that_would_get_each_others_messages",
    ),
    "a partial or an object cannot be a handler: it has no name": (
        f"{_REGISTERED}TestCalls::test_every_handler_has_a_name_for_people",
    ),
    "a handler gets no headers, properties or routing key": (
        f"{_REGISTERED}TestCalls::test_both",
        f"{_SERVED}test_a_retried_message_keeps_what_it_came_with",
    ),
    "a long handler stops the heartbeats: the connection is lost, the message runs for ever": (
        f"{_SERVED}test_a_long_handler_does_not_cost_the_connection",
    ),
    "handlers of all queues wait for each other, whatever the concurrency": (
        f"{_SERVED}test_handlers_have_threads_of_their_own",
        f"{_SERVED}test_a_long_handler_does_not_cost_the_connection",
    ),
    "it takes, and throws away, messages of Celery's own queue": (
        f"{_REGISTERED}TestChosen::test_a_service_may_have_handlers_only",
    ),
    "an exchange called 'default' gets the copies: 'ev.#' made 500 calls of one message": (
        f"{_SERVED}test_a_handler_of_all_messages_gets_no_copies",
        f"{_TROUBLED}test_a_storm_through_a_topic_exchange_is_retried_by_the_queue_that_failed",
    ),
    "a retry count that is no number ends the worker": (
        f"{_DECIDED}test_the_header_counts_and_nonsense_in_it_is_no_trouble",
        f"{_SERVED}test_what_no_retry_can_help_is_archived_at_once_and_nothing_stops_the_service",
    ),
    "a backoff function, or a publish, that fails: the message runs again at once, for ever": (
        f"{_DECIDED}test_a_backoff_function_that_makes_no_sense_is_replaced",
        f"{_DISPATCHED}test_a_copy_that_the_broker_does_not_take_is_tried_again",
    ),
    "the archive does not say why": (
        f"{_COPIED}test_it_goes_to_the_queue_of_its_delay_or_to_the_archive",
        f"{_SERVED}test_a_retried_message_keeps_what_it_came_with",
    ),
    "SystemExit ends the worker": (
        f"{_SERVED}test_what_no_retry_can_help_is_archived_at_once_and_nothing_stops_the_service",
    ),
    "a retried message loses properties and is encoded anew": (
        f"{_COPIED}test_all_properties_are_kept_and_the_message_becomes_persistent",
        f"{_SERVED}test_a_retried_message_keeps_what_it_came_with",
    ),
    "the second delivery does not tell the routing key": (
        f"{_COPIED}test_where_it_was_published_to_is_known_also_of_a_copy",
    ),
    "a short delay waits behind a long one": (
        f"{_SERVED}test_retries_of_many_delays_do_not_wait_behind_each_other",
    ),
    "a retry queue that was deleted: the message is acknowledged and lost": (
        f"{_SERVED}test_retry_and_archive_queues_that_are_deleted_are_made_again",
    ),
    "copies are neither mandatory nor confirmed": (
        f"{_DISPATCHED}test_what_fails_is_acknowledged_when_the_broker_has_the_copy",
        f"{_SERVED}test_in_a_memory_alarm_what_fails_stays_and_what_succeeds_is_done",
    ),
    "a body that cannot be read, or is not accepted, ends the worker again and again": (
        f"{_REGISTERED}TestContent::test_what_cannot_be_read_is_a_permanent_failure",
        f"{_SERVED}test_what_no_retry_can_help_is_archived_at_once_and_nothing_stops_the_service",
    ),
    "values of the environment are not read": (
        f"{_SETTINGS}TestFromTheOriginal::test_the_environment_has_values_as_text",
    ),
    "SERIALIZER does not change ACCEPT": (f"{_SETTINGS}test_another_serializer_is_accepted",),
    "ARCHIVE_EXPIRY has no effect by itself": (
        f"{_SETTINGS}test_a_limit_of_the_archive_has_an_effect_by_itself",
    ),
    "an archive that exists with other arguments, x-queue-mode for one: 406": (
        f"{_SERVED}test_the_queues_of_the_original_are_used_as_they_are",
    ),
    "quorum queues refuse x-queue-mode": (
        f"{_COPIED}TestLayout::test_all_queues_of_a_quorum_queue_are_quorum_queues_and_drop_nothing",
        f"{_SERVED}test_the_queues_of_a_quorum_queue_are_quorum_queues",
    ),
}

#: Trouble of any consumer: what is to be shown of ours beside that.
TROUBLE: dict[str, tuple[str, ...]] = {
    "a poison message: it cannot be read, it fails always, it kills the process": (
        f"{_SERVED}test_what_no_retry_can_help_is_archived_at_once_and_nothing_stops_the_service",
        f"{_TROUBLED}test_a_handler_that_kills_its_process_does_so_a_few_times_and_others_pay_for_nothing",
        f"{_TROUBLED}test_restarts_cost_messages_nothing_that_had_not_begun_and_a_stop_costs_none",
    ),
    "a storm through a topic exchange": (
        f"{_TROUBLED}test_a_storm_through_a_topic_exchange_is_retried_by_the_queue_that_failed",
    ),
    "what waits behind something slow": (
        f"{_SERVED}test_retries_of_many_delays_do_not_wait_behind_each_other",
        f"{_SERVED}test_a_handler_that_takes_too_long_has_failed_and_holds_up_nobody",
        f"{_DISPATCHED}test_what_waits_behind_long_work_goes_back",
    ),
    "lost queues": (
        f"{_SERVED}test_retry_and_archive_queues_that_are_deleted_are_made_again",
        f"{_TROUBLED}test_a_queue_that_is_deleted_while_it_is_consumed_is_made_again_with_its_bindings",
    ),
    "a long handler and a short heartbeat, or a short consumer_timeout": (
        f"{_SERVED}test_a_long_handler_does_not_cost_the_connection",
        f"{_TROUBLED}test_a_handler_longer_than_the_brokers_delivery_timeout_is_told_and_runs_once",
    ),
    "a first publish that is shared": (
        f"{_TROUBLED}test_handlers_that_publish_for_the_first_time_all_at_once",
        "integration/test_publishing.py::test_many_threads_share_one_connection",
        "integration/test_publishing.py::test_parent_and_child_go_on_after_a_fork",
    ),
    "a consumer that the broker cancels": (
        f"{_TROUBLED}test_a_queue_that_is_deleted_while_it_is_consumed_is_made_again_with_its_bindings",
    ),
    "a publisher that is no Python": (f"{_TROUBLED}test_messages_of_a_program_that_is_not_python",),
}

#: What is otherwise on purpose, or not needed, and the words of the documentation for it.
OTHERWISE: dict[str, str] = {
    "one retry queue with a time to live of each message": "a queue for each delay",
    "PREFETCH_COUNT is 1": "follows the run time",
    "archives are lazy": "`lazy`, which RabbitMQ ignores",
    "handlers for tests come with TEST_ENABLED": "`USE_DJANGO`, `TEST_ENABLED`",
    "BROKER_URL is the tests' only: the broker is the Celery app's": "the broker of all handlers",
    "it runs in a Celery app, by bin/celery worker": "Celery app and its `AMQPRetryConsumerStep`",
    "x-queue-mode and other arguments cannot be changed": (
        "Arguments of a queue cannot be changed once it exists"
    ),
    "the logger event_consumer.handlers": "the service's log says so",
    "serializers that could run code": "Nothing that could run\ncode (pickle, YAML) is read",
}


@cache
def present() -> frozenset[str]:
    """All tests, by file, class and name."""
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        file = str(path.relative_to(TESTS))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                found.add(f"{file}::{node.name}")
            elif isinstance(node, ast.ClassDef):
                methods = (one for one in node.body if isinstance(one, ast.FunctionDef))
                found.update(f"{file}::{node.name}::{one.name}" for one in methods)
    return frozenset(found)


@pytest.mark.parametrize("lines", [BEHAVIOUR, DEFECTS, TROUBLE])
def test_every_line_is_shown_by_tests_that_are_there(lines: dict[str, tuple[str, ...]]) -> None:
    known = present()
    gone = {line: set(tests) - known for line, tests in lines.items()}
    assert not {line: tests for line, tests in gone.items() if tests}
    assert all(lines.values())


@pytest.mark.parametrize("line", OTHERWISE)
def test_what_is_otherwise_is_told_in_the_documentation(line: str) -> None:
    assert OTHERWISE[line] in PAGE
