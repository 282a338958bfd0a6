# SPDX-License-Identifier: Apache-2.0
"""Recordings: a line is read back as the message that it was made of; the command's arguments."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import BasicProperties

from carrot_twisted import command_line, replaying
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.recording import PROPERTIES, Recorded, from_line, recorded, to_line
from carrot_twisted.virtual_host import VirtualHost

if TYPE_CHECKING:
    from pathlib import Path


def message(**changes: Any) -> Recorded:
    return Recorded(
        **{
            "exchange": "e",
            "routing_key": "k",
            "body": b"text",
            "headers": {},
            "properties": {},
            **changes,
        }
    )


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(body=st.binary(), headers=st.dictionaries(st.text(), values))
def test_a_line_is_read_back_as_it_was(body: bytes, headers: dict[str, Any]) -> None:
    # Nobody but ourselves uses such names.
    if "$" in str(headers):
        return
    one = message(body=body, headers=headers, properties={"priority": 3})
    line = to_line(one)
    assert "\n" not in line
    assert from_line(line) == one


def test_people_can_read_it() -> None:
    line = to_line(
        message(
            body=b"\xff",
            headers={
                "bytes": b"\xff",
                "time": datetime(2026, 1, 31, 8),
                "decimal": Decimal("1.50"),
            },
        )
    )
    assert json.loads(line) == {
        "exchange": "e",
        "routing_key": "k",
        "body_base64": "/w==",
        "headers": {
            "bytes": {"$bytes": "/w=="},
            "time": {"$time": "2026-01-31T08:00:00"},
            "decimal": {"$decimal": "1.50"},
        },
        "properties": {},
    }


def test_of_what_has_come_all_is_kept_but_whose_it_was() -> None:
    properties = BasicProperties(content_type="text/plain", user_id="somebody", priority=1)
    one = recorded(exchange="", routing_key="q", body=b"", headers={"h": 1}, properties=properties)
    assert {key: value for key, value in one.properties.items() if value is not None} == {
        "content_type": "text/plain",
        "priority": 1,
    }
    known = set(vars(BasicProperties()))
    assert known - set(PROPERTIES) == {"headers", "user_id", "cluster_id"}


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "7",
        "[]",
        "{}",
        '{"exchange": "e", "routing_key": "k"}',
        '{"exchange": "e", "routing_key": "k", "body": 7}',
        '{"exchange": "e", "routing_key": "k", "body_base64": "?"}',
        '{"exchange": "e", "routing_key": "k", "body": "", "headers": []}',
        '{"exchange": "e", "routing_key": "k", "body": "", "headers": {"h": {"$decimal": "x"}}}',
        '{"exchange": "e", "routing_key": "k", "body": "", "properties": {"nonsense": 1}}',
    ],
)
def test_what_is_no_message_is_told(line: str) -> None:
    with pytest.raises(InvalidMessage, match="no recorded message"):
        from_line(line)


class TestLastLine:
    WHOLE = to_line(message()).encode()

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (b"", b""),
            (b"%b\n", b"%b\n"),
            (b"%b", b"%b\n"),
            (b'%b\n{"exchange": "e", "bo', b"%b\n"),
            (b"%b\n\xc3", b"%b\n"),
            (b"{", b""),
        ],
    )
    def test_a_part_of_a_line_is_taken_away_and_a_whole_one_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes, after: bytes
    ) -> None:
        monkeypatch.setattr(command_line, "CHUNK", 7)
        file = tmp_path / "recording"
        file.write_bytes(before.replace(b"%b", self.WHOLE))
        command_line._mend_last_line(file)
        assert file.read_bytes() == after.replace(b"%b", self.WHOLE)

    def test_a_file_that_is_not_there_is_left_alone(self, tmp_path: Path) -> None:
        command_line._mend_last_line(tmp_path / "none")
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "COMMAND"),
        (["nonsense"], "invalid choice"),
        (["publish"], "file"),
        (["publish", "-", "--header=x"], "NAME=VALUE"),
        (["record", "f", "--limit=0"], "1 or more"),
        (["replay"], "one of the arguments file --queue is required"),
        (["replay", "f", "--queue=q"], "not allowed with"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_told(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(arguments)
    assert ended.value.code == command_line.EXIT_USAGE
    assert text in capsys.readouterr().err


def test_consume_takes_the_options_of_twistd_carrot(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["consume", "--nonsense"]) == command_line.EXIT_USAGE
    assert "--nonsense" in capsys.readouterr().err
    assert command_line.main(["consume", "--settings=x"]) == command_line.EXIT_USAGE
    assert "--callback=package.module:object" in capsys.readouterr().err


def test_what_goes_wrong_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["publish", "/no/such/file", "--routing-key=q"]) == 1
    assert capsys.readouterr().err == (
        "carrot publish: [Errno 2] No such file or directory: '/no/such/file'\n"
    )


def test_an_archive_is_on_the_broker_of_its_queue(settings: Any) -> None:
    urls = [f"amqp://guest:guest@{name}/" for name in ("tasks", "handlers", "others")]
    settings.CARROT = {
        "default_broker": urls[2],
        "queues": [{"name": "default"}, {"name": "mail", "host": urls[0]}],
        "handlers": {"host": urls[1]},
    }
    assert replaying.host_of("mail.dead") == VirtualHost(urls[0])
    assert replaying.host_of("default.dead") == VirtualHost(urls[2])
    assert replaying.host_of("orders.paid.archived") == VirtualHost(urls[1])
