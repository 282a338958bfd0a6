# SPDX-License-Identifier: Apache-2.0
"""What fedora-messaging 3.9 has and lacks, line by line, and what shows how it is here.

Each line names tests, or words of docs/callbacks.md or of the guide for those who move that tell
what is otherwise. This file sees to it that they are there: a test that is renamed, or a note that
is taken out, is missed.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parents[1]
DOCS = TESTS.parent / "docs"
PAGE = " ".join(
    word
    for page in ("callbacks.md", "migrating-from-fedora-messaging.md")
    for word in (DOCS / page).read_text(encoding="utf-8").split()
)

CALLBACKS = "integration/test_callbacks.py"
FAULTS = "integration/test_callback_faults.py"
COMMAND = "integration/test_carrot_command.py"
OPTIONS = "unit/test_options.py"
VALUES = "unit/test_callbacks.py"
DISPATCHER = "unit/test_callback_dispatcher.py"
SENDING = "unit/test_sending.py"
DOCUMENTED = "acceptance/test_callbacks_page.py"
SYSTEMD = "integration/test_systemd.py"
TLS = "integration/test_tls.py"


class Shown(NamedTuple):
    """By tests: each is a file, and a function in it."""

    tests: tuple[tuple[str, str], ...]


class Told(NamedTuple):
    """By the documentation: these words are there."""

    words: str


def shown(*tests: str) -> Shown:
    """Files and functions, by turns; a file may be left out where it is the one before."""
    found = []
    file = ""
    for one in tests:
        if one.endswith(".py"):
            file = one
        else:
            found.append((file, one))
    return Shown(tuple(found))


#: What it can do.
FEATURES: dict[str, Shown | Told] = {
    "api.consume, until a signal or HaltConsumer": shown(
        CALLBACKS, "test_a_script_without_a_django_project_consumes"
    ),
    "api.twisted_consume; result, cancel, running, queue of a consumer": shown(
        CALLBACKS, "test_in_a_running_reactor_each_queue_has_a_consumer_of_its_own"
    ),
    "wrong arguments raise before anything is consumed": shown(
        VALUES, "test_what_cannot_work_is_told_before_anything_is_consumed"
    ),
    "stats of a consumer, /live and /ready": Told("`monitoring`, `Consumer.stats`"),
    "api.publish waits for the confirm": shown(
        CALLBACKS, "test_it_returns_when_the_broker_has_the_message"
    ),
    "api.twisted_publish, also from a callback by blockingCallFromThread": shown(
        CALLBACKS, "test_a_callback_publishes_and_calls_the_reactor"
    ),
    "several bindings and queues": shown(
        CALLBACKS,
        "test_several_queues_and_bindings_share_the_callback_that_need_not_be_thread_safe",
    ),
    "its own example's dictionaries": shown(
        VALUES, "test_the_dictionaries_of_fedora_messagings_own_example_are_taken"
    ),
    "by default a queue that the broker names, with all of amq.topic": shown(
        CALLBACKS, "test_by_default_a_queue_that_the_broker_names_gets_what_amq_topic_gets"
    ),
    "a queue that the broker names comes back with its bindings": shown(
        CALLBACKS, "test_a_queue_that_the_broker_names_follows_one_that_is_gone"
    ),
    "a function, an object or a method": shown(
        VALUES, "test_what_can_be_called_with_a_message_is_taken_as_it_is"
    ),
    "a class, or async def": shown(
        CALLBACKS, "test_a_callback_may_be_a_coroutine_function_or_a_class"
    ),
    "one callback at a time": shown(
        CALLBACKS, "test_messages_are_called_back_one_at_a_time_in_their_order"
    ),
    "a callback may block, heartbeats go on": shown(
        FAULTS, "test_a_callback_that_takes_longer_than_heartbeats_does_not_cost_the_connection"
    ),
    "consumer_config": Told("`consumer_config` | Django's settings"),
    "signals before and after publishing": Told("`pre_publish_signal`, `publish_signal`"),
    "dumps and loads of messages": shown(COMMAND, "test_a_recording_is_replayed_as_it_was"),
    "testing.mock_sends": shown(
        VALUES, "test_tests_of_others_may_put_a_mock_in_the_place_of_publish"
    ),
    "returns: acknowledged": shown(DISPATCHER, "test_what_was_called_back_is_acknowledged"),
    "Nack, Drop": shown(CALLBACKS, "test_nack_returns_a_message_and_drop_dead_letters_it"),
    "HaltConsumer, other exceptions, status 13": shown(
        CALLBACKS, "test_what_ends_the_consumer_returns_what_was_prefetched_and_sets_the_status"
    ),
    "what ends a consumer comes out of api.consume": shown(
        CALLBACKS, "test_a_script_without_a_django_project_consumes"
    ),
    "unreadable messages end nothing": shown(
        CALLBACKS, "test_a_body_that_cannot_be_read_goes_to_the_archive_and_ends_nothing"
    ),
    "other exceptions: NoFreeChannels and so on": Told("`BadDeclaration`"),
    "statuses 10 to 12, 14, 15 of consume": Told("exit statuses 10 to 12, 14 and 15"),
    "statuses 111 and 121 of publish": Told("exit statuses 111 and 121"),
    "SIGTERM lets the callback end": shown(
        CALLBACKS, "test_a_stop_lets_the_callback_end_and_returns_the_others"
    ),
    "consume --callback --routing-key --queue-name --exchange": shown(
        OPTIONS,
        "test_queue_exchange_and_keys_make_a_binding",
        COMMAND,
        "test_consume_calls_back_and_ends_as_the_callback_says",
    ),
    "consume --callback-file, --app-name": Told("`--callback-file=path:C`, `--app-name`"),
    "publish FILE or -": shown(COMMAND, "test_publish_tells_what_became_of_the_message"),
    "record FILE --limit": shown(
        COMMAND,
        "test_by_default_copies_are_recorded_until_a_signal",
        "test_a_recording_is_replayed_as_it_was",
    ),
    "replay, reconsume from datagrepper": Told("`reconsume` of datagrepper's messages"),
    "amqp_url": Told("`amqp_url` |"),
    "client_properties": Told("`client_properties`"),
    "publish_exchange, topic_prefix, publish_priority": Told("`topic_prefix`, `publish_priority`"),
    "passive_declares": shown(
        "integration/test_broker_outages.py",
        "test_a_password_and_permissions_that_are_taken_away_are_told_once_and_wanted_back",
    ),
    "exchanges, queues, bindings of the file": shown(
        OPTIONS, "test_all_can_be_said_in_json_also_in_files"
    ),
    "qos": Told("`qos` | `prefetch_count`"),
    "tls": shown(
        TLS,
        "test_a_broker_that_asks_for_a_certificate_gets_it",
        "test_who_shows_a_certificate_may_be_the_user_that_it_names",
    ),
    "log_config": Told("`log_config`"),
    "the unit for systemd": shown(SYSTEMD, "test_is_understood_by_systemd"),
    "classes and schemas of messages": Told("message schemas and classes"),
    "messages of its publishers, and of ours for its consumers": shown(
        FAULTS, "test_what_fedora_messaging_publishes_is_called_back"
    ),
    "priority": shown(SENDING, "test_it_returns_with_the_confirm"),
    "reconnects, with its topology": shown(
        CALLBACKS, "test_one_at_a_time_also_when_the_broker_is_killed_and_comes_back"
    ),
    "403 is told apart": shown(
        "integration/test_publishing.py",
        "test_an_exchange_that_the_user_may_not_write_to_holds_up_no_other",
    ),
    "a plugin for twistd (it has none)": shown(
        "acceptance/test_package.py", "test_twistd_lists_carrot_from_the_wheel"
    ),
}

#: Its defects, as the inventory numbers them.
DEFECTS: dict[str, Shown | Told] = {
    "1 a channel that closes in an idle moment leaves a zombie": shown(
        FAULTS,
        "test_a_channel_that_the_broker_closes_while_nothing_happens_is_followed_by_another",
        "test_a_callback_longer_than_the_brokers_delivery_timeout_runs_once_and_is_told",
    ),
    "2 two consumers, and two callbacks at once, after a reconnection": shown(
        FAULTS,
        "test_after_many_reconnections_there_is_one_consumer_and_one_callback_at_a_time",
        CALLBACKS,
        "test_one_at_a_time_also_when_the_broker_is_killed_and_comes_back",
    ),
    "3 waits up to an hour before it reconnects": shown(
        "unit/test_connection_backoff.py", "test_the_delay_doubles_up_to_its_bound"
    ),
    "4 publishing to a missing exchange never ends": shown(
        FAULTS,
        "test_an_exchange_that_is_missing_is_told_at_once_to_all_and_costs_the_others_nothing",
        "test_an_exchange_that_is_deleted_while_it_is_used_is_told_soon_and_used_when_it_is_back",
    ),
    "5 a publish that times out spoils the others'": shown(
        SENDING,
        "test_a_refusal_and_the_end_of_the_time_are_told",
        CALLBACKS,
        "test_a_broker_that_is_away_is_waited_for_until_the_time_is_over",
    ),
    "6 first publishes at the same moment open a channel each": shown(
        FAULTS,
        "test_threads_that_publish_first_at_the_same_moment_share_one_connection_and_all_are_"
        "confirmed",
    ),
    "7 one callback at a time, and nothing else": shown(
        CALLBACKS, "test_concurrency_lets_several_run_at_once"
    ),
    "8 schemas are checked in the reactor's thread": Told("messages as they are"),
    "9 a timer for each message, a second to stop": shown(
        DISPATCHER, "test_its_result_comes_when_all_is_settled_and_sent"
    ),
    "10 two lines in the log for each message": shown(
        DISPATCHER, "test_what_was_called_back_is_acknowledged_without_a_word"
    ),
    "11 cancels after the callback's end, and loses errors": shown(
        DISPATCHER,
        "test_what_halts_is_the_last_that_is_called_back_and_the_rest_goes_back_after_the_cancel",
        "test_its_result_comes_when_all_is_settled_and_sent",
    ),
    "12 a callback that hangs holds up a stop for ever": shown(
        CALLBACKS,
        "test_a_callback_that_does_not_end_in_time_does_not_hold_up_the_stop",
        "test_a_second_signal_does_not_wait_for_the_callback",
    ),
    "13 confirms on channels that consume": shown(
        FAULTS, "test_a_callback_that_takes_longer_than_heartbeats_does_not_cost_the_connection"
    ),
    "14 a channel for each declaration; texts with %r": shown(
        FAULTS, "test_a_queue_that_another_connection_has_to_itself_is_told_and_waited_for"
    ),
    "15 a traceback for each publish of a callback": shown(
        CALLBACKS, "test_a_callback_publishes_and_calls_the_reactor"
    ),
    "16 always says that it is ready": shown(
        FAULTS,
        "test_a_channel_that_the_broker_closes_while_nothing_happens_is_followed_by_another",
        SYSTEMD,
        "test_what_the_unit_starts_is_ready_gives_signs_of_life_and_stops",
    ),
    "17 an exception returns all that was prefetched, and a poison message blocks the queue": shown(
        CALLBACKS,
        "test_with_on_error_archive_what_fails_is_kept_with_the_reason_and_the_next_one_follows",
        "test_a_message_that_is_never_wanted_costs_a_call_a_second_and_holds_up_no_other",
    ),
}


def functions(file: str) -> set[str]:
    """Names of all tests in a file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def missing(proof: Shown | Told) -> list[str]:
    """What a line names and is not there."""
    if isinstance(proof, Told):
        return [] if proof.words in PAGE else [proof.words]
    return [f"{file}: {test}" for file, test in proof.tests if test not in functions(file)]


@pytest.mark.parametrize("line", [*FEATURES, *DEFECTS])
def test_every_line_names_what_is_there(line: str) -> None:
    assert missing({**FEATURES, **DEFECTS}[line]) == []


def test_no_defect_is_left_out() -> None:
    numbers = [int(re.match(r"\d+", line)[0]) for line in DEFECTS]  # type: ignore[index]
    assert numbers == list(range(1, 18))


def test_what_is_not_there_is_missed() -> None:
    assert missing(Told("words that nobody has written")) != []
    assert missing(shown(CALLBACKS, "test_nothing")) == [f"{CALLBACKS}: test_nothing"]
