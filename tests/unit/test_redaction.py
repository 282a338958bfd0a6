# SPDX-License-Identifier: Apache-2.0
"""What the monitor shows of arguments and results, and what never."""

from __future__ import annotations

import functools
import json
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted import conf, kinds
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import redaction
from carrot_twisted.monitor.redaction import NOT_SHOWN, REDACTED

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cr3t-Wort"


def login(user: str, password: str, *more_tokens: str) -> None:
    """A task with secrets in its second argument, and from the third on."""


def pay(order: int, how: dict[str, Any]) -> None:
    """A task without secrets in its own parameters."""


@functools.wraps(login)
def decorated(*args: Any, **kwargs: Any) -> None:
    """A task behind a decorator."""


def row(task: str = "login", args: Any = (), kwargs: Any = None, **given: Any) -> MessageLog:
    """An unsaved row of a task of this module."""
    fields = {"task_args": json.dumps(list(args)), "content": json.dumps(kwargs or {})}
    return MessageLog(task=f"{__name__}.{task}", queue="default", **{**fields, **given})


def all_texts(one: MessageLog) -> str:
    """Everything that is ever shown of a row's arguments."""
    texts = [redaction.shown_arguments(one)]
    if one.is_task:
        return "\n".join([*texts, redaction.positional_text(one), redaction.keyword_text(one)])
    texts += [redaction.shown_text(one.content), redaction.shown_text(one.task_args)]
    return "\n".join(texts)


def test_arguments_are_shown_as_in_a_call() -> None:
    shown = redaction.shown_arguments(row("pay", [1, {"by": "post"}], {"note": "für\n\tAda"}))
    assert shown == '1, {"by": "post"}, note="für\\n\\tAda"'
    assert redaction.shown_arguments(row("pay")) == ""


def test_indented_text_is_complete_json_and_short_one_takes_one_line() -> None:
    long = {"name": "x" * 100, "list": [1, 2]}
    one = row("pay", [1, 2], long)
    assert redaction.positional_text(one) == "[1, 2]"
    assert json.loads(redaction.keyword_text(one)) == long
    assert redaction.keyword_text(one).startswith('{\n  "name"')
    assert redaction.positional_text(row()) == redaction.keyword_text(row()) == ""


@pytest.mark.parametrize(
    "name",
    ["password", "PASSWORD", "old_password_2", "api_key", "apiKey", "API-Key", "X-Api-Key"],
)
def test_a_keyword_with_such_a_name_is_redacted(name: str) -> None:
    one = row("pay", (), {name: SECRET, "user": "ada"})
    assert redaction.shown_arguments(one) == f'{name}="{REDACTED}", user="ada"'
    assert SECRET not in all_texts(one)


def test_a_position_is_redacted_by_its_parameter() -> None:
    one = row("login", ["ada", SECRET, SECRET + "1", SECRET + "2"])
    assert redaction.shown_arguments(one) == f'"ada", "{REDACTED}", "{REDACTED}", "{REDACTED}"'
    assert SECRET not in all_texts(one)


def test_the_parameters_are_those_behind_a_decorator() -> None:
    assert SECRET not in all_texts(row("decorated", ["ada", SECRET]))


@pytest.mark.parametrize(
    ("task", "args"),
    [
        (f"{__name__}.missing", [1]),
        (f"{__name__}.SECRET", [1]),
        ("no.such.module.task", [1]),
        ("nothing", [1]),
        ("", [1]),
        (f"{__name__}.pay", [1, {}, SECRET]),
        ("builtins.print", []),
    ],
    ids=["function", "no function", "module", "no path", "empty", "too many", "none given"],
)
def test_what_has_no_known_name_is_not_shown(task: str, args: list[Any]) -> None:
    one = row(args=args)
    one.task = task
    shown = redaction.positional_text(one)
    assert SECRET not in all_texts(one)
    assert (NOT_SHOWN in shown) is bool(args)


def test_without_words_everything_is_shown(settings: Any) -> None:
    settings.CARROT = {"redact": []}
    one = row("missing", ["ada", SECRET], {"password": SECRET})
    assert redaction.shown_arguments(one) == f'"ada", "{SECRET}", password="{SECRET}"'


def test_own_words_replace_the_others(settings: Any) -> None:
    settings.CARROT = {"redact": ("Kenn-Wort",)}
    one = row("pay", (), {"kennwort": 1, "password": 2})
    assert redaction.shown_arguments(one) == f'kennwort="{REDACTED}", password=2'


@pytest.mark.parametrize("value", ["password", None, [""], ["-_"], [1], {"a": 1}])
def test_other_kinds_of_values_are_mistakes_of_the_setting(settings: Any, value: Any) -> None:
    settings.CARROT = {"redact": value}
    assert [problem.id for problem in conf.problems()] == ["carrot_twisted.E006"]
    with pytest.raises(CarrotConfigException, match="a list of words"):
        conf.current()


def test_the_default_knows_the_usual_names() -> None:
    plain = [kinds.plain_name(word) for word in conf.DEFAULTS["redact"]]
    assert {"password", "secret", "token", "authorization", "apikey", "card"} <= set(plain)


def test_a_module_of_the_settings_is_imported_and_no_other(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("redaction_named", "redaction_other", "redaction_broken"):
        text = "raise SystemExit" if "broken" in name else "def task(password, page): pass"
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings.CARROT = {"task_modules": ["redaction_named", "redaction_broken"]}
    shown = {}
    for name in ("redaction_named", "redaction_other", "redaction_broken"):
        one = row(args=[SECRET, 7])
        one.task = f"{name}.task"
        shown[name] = redaction.shown_arguments(one)
    hidden = f'"{NOT_SHOWN}", "{NOT_SHOWN}"'
    assert shown == {
        "redaction_named": f'"{REDACTED}", 7',
        "redaction_other": hidden,
        "redaction_broken": hidden,
    }
    assert "redaction_other" not in sys.modules


def test_nothing_of_a_module_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("redaction_trap")

    def trap(_name: str) -> Any:
        raise AssertionError("it was asked")

    module.__getattr__ = trap  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "redaction_trap", module)
    one = row(args=[SECRET])
    one.task = "redaction_trap.task"
    assert redaction.shown_arguments(one) == f'"{NOT_SHOWN}"'


def test_the_row_of_a_message_shows_its_body_and_its_properties() -> None:
    about = {"message_id": "m", "headers": {"Authorization": SECRET, "x-try": 1}}
    one = row(task_args=json.dumps(about), content=json.dumps({"order": 1, "card": [SECRET]}))
    assert not one.is_task
    assert redaction.shown_arguments(one) == f'{{"order": 1, "card": "{REDACTED}"}}'
    assert f'"Authorization": "{REDACTED}"' in redaction.shown_text(one.task_args)
    assert SECRET not in all_texts(one)


def test_a_body_that_is_no_json_is_shown_as_it_is() -> None:
    one = row(task_args='{"message_id": "m"}', content="<order>\n1</order>")
    assert redaction.shown_arguments(one) == "<order> 1</order>"
    assert redaction.shown_text(one.content) == one.content


@pytest.mark.parametrize(
    "text",
    [
        f'{{"order": 1, "password": "{SECRET}',
        f'[{{"token": "{SECRET}"',
        f"{{'token': object('{SECRET}')}}",
        '{"token": ' + "[" * 100_000 + f'"{SECRET}"',
    ],
    ids=["cut", "cut list", "no literal", "deep"],
)
def test_json_that_was_cut_is_not_shown_where_it_may_hold_a_secret(text: str) -> None:
    assert redaction.shown_text(text) == NOT_SHOWN
    one = row(content=text, task_args=text)
    one.task_args = "[" + text
    assert SECRET not in all_texts(one)


def test_json_that_was_cut_is_shown_where_no_name_is_a_secret() -> None:
    assert redaction.shown_text('{"order": 1, "no') == '{"order": 1, "no'


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("done", "done"),
        ("4", "4"),
        ('{"sent": 2, "token": "t"}', f'{{"sent": 2, "token": "{REDACTED}"}}'),
        ("[{'token': 't'}, None]", f'[{{"token": "{REDACTED}"}}, null]'),
        ("({'token': 't'}, (1, 2))", f'[{{"token": "{REDACTED}"}}, [1, 2]]'),
        ("{1}", "{1}"),
        ("[<Order: 4>]", "[<Order: 4>]"),
    ],
)
def test_results_are_shown_as_json_where_they_are_objects_or_lists(output: str, shown: str) -> None:
    assert redaction.shown_text(output) == shown


def test_rows_of_django_carrot_hold_literals() -> None:
    one = row("login", task_args=f"('ada', '{SECRET}')", content=f"{{'password': '{SECRET}'}}")
    assert redaction.shown_arguments(one) == f'"ada", "{REDACTED}", password="{REDACTED}"'


def test_a_line_is_short_and_shows_what_cannot_be_seen() -> None:
    line = redaction.shown_arguments(row("pay", ["x" * 500]))
    assert len(line) == redaction.LINE + 1
    assert line.endswith("…")
    line = redaction.shown_arguments(row("pay", ["\u202edrow\x1b[31m"]))
    assert line == '"\\u202edrow\\u001b[31m"'


def test_large_arguments_are_not_read_for_a_list() -> None:
    one = row("pay", ["x" * redaction.MAX_READ])
    assert redaction.shown_arguments(one) == f"… ({len(one.task_args) + 2} characters)"
    assert len(redaction.positional_text(one)) > redaction.MAX_READ


def test_halves_of_surrogate_pairs_can_be_encoded() -> None:
    one = row("pay", task_args=r'["\ud800", "\u0000"]', content=r'{"\udfff": 1}')
    assert all_texts(one).encode()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = st.tuples(
    st.text(max_size=4),
    st.sampled_from(["password", "Token", "API-KEY", "credit_Card", "Authorization"]),
    st.text(max_size=4),
).map("".join)
#: A value that holds SECRET under a name that is redacted, somewhere in it.
HOLDING = st.recursive(
    st.dictionaries(NAMES, st.just(SECRET) | st.just([{"x": SECRET}]), min_size=1, max_size=2),
    lambda inner: (
        st.tuples(JSON, inner, JSON).map(list)
        | st.tuples(st.text(max_size=5), inner).map(lambda pair: {"": 1, pair[0]: pair[1]})
    ),
    max_leaves=6,
)


@given(HOLDING, JSON)
def test_a_redacted_value_is_never_shown(value: Any, other: Any) -> None:
    rows = [
        row("pay", [other, value]),
        row("missing", [value, SECRET]),
        row("pay", (), {"value": value, "other": other}),
        row(task_args=json.dumps({"headers": value}), content=json.dumps(value)),
    ]
    for one in rows:
        assert SECRET not in all_texts(one)
    for text in (json.dumps(value), str(value), str([other, value])):
        assert SECRET not in redaction.shown_text(text)


@given(JSON)
def test_what_has_no_such_name_is_shown_as_it_is(value: Any) -> None:
    # Among these short texts there is none of the words.
    assert json.loads(redaction.positional_text(row("pay", [value])))[0] == value


@given(st.text(), st.text(), st.text())
def test_any_text_in_a_row_gives_a_text(args: str, kwargs: str, output: str) -> None:
    one = row(task_args=args, content=kwargs)
    assert isinstance(all_texts(one), str)
    assert isinstance(redaction.shown_text(output), str)
