# SPDX-License-Identifier: Apache-2.0
"""What ``@task`` says: checked at once, merged in order, and the pure decisions that follow."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from carrot_twisted import task, task_options
from carrot_twisted.exceptions import InvalidMessage, PermanentFailure, PoisonMessage, Retry
from carrot_twisted.limits import limit_of
from carrot_twisted.task_options import Declared, PublishOptions, TaskOptions, first_said


def of(**given: Any) -> TaskOptions:
    """Without chance in it."""
    return TaskOptions(**{"retry_jitter": 0, **given})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"priority": 256}, "priority is 256. It must be a whole number from 0 to 255"),
        ({"priority": True}, "priority is True"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"retry_on": ValueError}, "a list of exception classes"),
        ({"retry_on": {ValueError: 0}}, "retry_on is"),
        ({"retry_backoff": 0}, "retry_backoff is 0"),
        ({"retry_jitter": 1.5}, "retry_jitter is 1.5. It must be a number from 0 to 1"),
        ({"expires": -60}, "expires is -60"),
        ({"expires": datetime(2030, 1, 1, tzinfo=UTC)}, r"use \.options\(expires=...\)"),
        ({"unique": 7}, "unique is 7"),
        ({"unique": True, "unique_until": "never"}, "unique_until is 'never'"),
        ({"unique_until": "end"}, "together with unique"),
        ({"on_duplicate": "ignore"}, "It must be 'return' or 'raise'"),
        ({"retention": 0}, "retention is 0"),
        ({"ignore_result": 1}, "It must be True or False"),
        ({"queue": ""}, "queue is ''"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidMessage, match=told):
        task(**given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"run_after": -1}, "run_after is -1. It must be a datetime with a time zone, or"),
        ({"run_after": datetime(2030, 1, 1)}, "run_after is"),
        ({"run_after": timedelta(0)}, "run_after is"),
        ({"run_after": "tomorrow"}, "run_after is 'tomorrow'"),
        ({"expires": float("nan")}, "expires is nan"),
        (
            {
                "run_after": datetime(2030, 1, 2, tzinfo=UTC),
                "expires": datetime(2030, 1, 2, tzinfo=UTC),
            },
            "It could never start",
        ),
    ],
)
def test_so_are_times_of_a_publishing(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidMessage, match=told):
        PublishOptions(**given)


def test_what_is_said_first_counts() -> None:
    at_publish = PublishOptions(priority=0, expires=5)
    decorator = TaskOptions(priority=3, retention=60, max_retries=0)
    settings = TaskOptions(priority=9, retention=7, max_retries=5, on_duplicate="raise")
    said = first_said(decorator, settings)
    assert (said.priority, said.retention, said.max_retries) == (3, 60, 0)
    both = first_said(at_publish, decorator, settings)
    assert both == PublishOptions(priority=0, expires=5, retention=60, on_duplicate="raise")


# Retries.


def test_without_a_word_only_retry_has_a_task_tried_again() -> None:
    said = of()
    assert said.retry_delay(ValueError(), 0) is None
    assert [said.retry_delay(Retry(), n) for n in range(4)] == [5, 10, 20, None]


def test_max_retries_alone_is_about_every_exception_but_not_about_the_end_of_a_thread() -> None:
    said = of(max_retries=2)
    assert [said.retry_delay(ValueError(), n) for n in range(3)] == [5, 10, None]
    assert said.retry_delay(SystemExit(), 0) is None
    assert of(max_retries=0, retry_on=[ValueError]).retry_delay(ValueError(), 0) is None


def test_only_the_exceptions_that_are_named() -> None:
    said = of(retry_on=(OSError,), retry_backoff=1)
    assert said.retry_delay(ConnectionError(), 1) == 2
    assert said.retry_delay(ValueError(), 0) is None


def test_each_exception_may_have_its_own_backoff_the_nearest_class_counts() -> None:
    said = of(max_retries=9, retry_on={OSError: 100, ConnectionError: 2}, retry_backoff_max=50)
    assert said.retry_delay(ConnectionResetError(), 3) == 16
    assert said.retry_delay(ConnectionResetError(), 8) == 50
    assert said.retry_delay(FileNotFoundError(), 2) == 100, "as was said, although it is longer"
    assert said.retry_delay(ValueError(), 0) is None


def test_the_delay_grows_up_to_its_limit_however_often() -> None:
    said = of(max_retries=32_000)
    assert said.retry_delay(ValueError(), 7) == 600
    assert said.retry_delay(ValueError(), 31_999) == 600


def test_some_of_it_is_left_out_at_random() -> None:
    said = of(max_retries=1, retry_backoff=100, retry_jitter=0.25)
    delays = {said.retry_delay(ValueError(), 0) or 0.0 for _ in range(200)}
    assert len(delays) > 100
    assert 75 <= min(delays) < 80
    assert 95 < max(delays) <= 100


def test_retry_says_when_itself_and_that_is_kept_to() -> None:
    assert of(retry_jitter=1, retry_backoff_max=1).retry_delay(Retry(delay=3600), 0) == 3600
    assert of().retry_delay(Retry(delay=0), 0) == 0


@pytest.mark.parametrize("error", [PermanentFailure("no"), PoisonMessage("no")])
def test_what_is_hopeless_is_not_tried_again(error: Exception) -> None:
    assert of(max_retries=5).retry_delay(error, 0) is None


def test_the_text_of_a_retry_is_its_reason_or_that_of_its_cause() -> None:
    assert str(Retry("too many requests")) == "too many requests"
    assert str(Retry()) == "the task asks for another attempt"
    error = Retry()
    error.__cause__ = ValueError("the cause")
    assert str(error) == "the cause"


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "5", True])
def test_a_wrong_delay_is_told(delay: Any) -> None:
    with pytest.raises(ValueError, match="delay is a number of seconds"):
        Retry(delay=delay)


# Unique keys.


def greet(name: str, times: int = 1, *rest: Any, **more: Any) -> None:
    """A task."""


def key(unique: Any, *args: Any, **kwargs: Any) -> str | None:
    options = TaskOptions(unique=unique)
    return Declared(path="app.greet", function=greet, options=options).unique_key(args, kwargs)


def test_the_same_call_has_the_same_key_however_it_is_written() -> None:
    assert key(True, "Ada") == key(True, name="Ada") == key(True, "Ada", times=1)
    keys = [key(True, "Ada"), key(True, "Bob"), key(True, "Ada", 2), key(True, "Ada", 1, 2)]
    assert len({*keys, key(True, "Ada", a=1), key(True, "Ada", a={"b": [1]})}) == 6
    assert key(True, "Ada", a=1, b=2) == key(True, "Ada", b=2, a=1)


def test_a_key_is_made_of_parameters_or_by_a_function() -> None:
    assert key("{name} of {times}", "Ada") == "app.greet Ada of 1"
    assert key(lambda name, **_: name.lower(), "Ada", times=3) == "app.greet ada"
    assert key(None, "Ada") is None
    assert key(False, "Ada") is None


def test_a_long_key_or_one_that_cannot_be_shown_is_told_by_a_digest() -> None:
    for text in ("x" * 100, "a\nb", "\x00", "\ud800"):
        found = key("{name}", text) or ""
        assert found.startswith("app.greet text ")
        assert len(found) == len("app.greet text ") + 64
    assert key("{name}", "x" * 100) != key("{name}", "x" * 101)


def test_a_key_shows_nothing_that_the_monitor_does_not_show() -> None:
    declared = Declared(path="app.greet", function=greet, options=TaskOptions(unique="{name}"))
    assert declared.unique_key(["Ada"], {}, ["password"]) == "app.greet Ada"
    assert "Ada" not in (declared.unique_key(["Ada"], {}, ["password", "name"]) or "")


@pytest.mark.parametrize(
    ("unique", "args", "told"),
    [
        (True, (), "app.greet does not take these arguments: missing a required argument"),
        (lambda name: 7, ("Ada",), "unique of app.greet is to return a text, not 7"),
    ],
)
def test_arguments_that_make_no_key_are_told(unique: Any, args: Any, told: str) -> None:
    with pytest.raises(InvalidMessage, match=told):
        key(unique, *args)


@pytest.mark.parametrize("unique", ["customer", "{}", "{0}", "{nome}", "{name"])
def test_a_text_that_names_no_parameter_is_told_at_once(unique: str) -> None:
    with pytest.raises(InvalidMessage, match="unique"):
        key(unique, "Ada")


# The decorator.


@task(priority=4, time_limit=7)
def decorated(name: str) -> str:
    return f"Hello {name}"


def test_the_function_stays_what_it_is() -> None:
    assert decorated("Ada") == "Hello Ada"
    assert decorated.__name__ == "decorated"  # type: ignore[attr-defined]
    assert limit_of(decorated, None) == 7
    found = task_options.declared(f"{__name__}.decorated")
    assert found is not None
    assert found.options == TaskOptions(priority=4)
    assert task_options.declared(f"{__name__}.greet") is None


def test_what_no_worker_could_find_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="at the top of a module"):
        task(lambda: None)
    with pytest.raises(ValueError, match="above 0"):
        task(time_limit=-1)(greet)
    with pytest.raises(TypeError, match="retrys"):
        task(retrys=3)  # type: ignore[call-overload]
