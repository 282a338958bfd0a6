# SPDX-License-Identifier: Apache-2.0
"""Where a broker is: URLs and dictionaries of every form, and a password that nobody sees."""

from __future__ import annotations

import ssl
import traceback
from typing import Any
from urllib.parse import quote

import pika
import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrot_twisted.virtual_host import BLOCKED_TIMEOUT, HEARTBEAT, VirtualHost

SECRET = "s3cr3t-Wort"  # unlike anything else in these texts


def parts(host: VirtualHost) -> tuple[Any, ...]:
    return host.servers, host.name, host.username, host.password, host.secure


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://u:p@h:5673/v", ((("h", 5673),), "v", "u", "p", False)),
        ("amqp://u:p@h/v", ((("h", 5672),), "v", "u", "p", False)),
        ("amqps://u:p@h/v", ((("h", 5671),), "v", "u", "p", True)),
        ("amqps://u:p@h:443/v", ((("h", 443),), "v", "u", "p", True)),
        ("amqp://h", ((("h", 5672),), "/", "guest", "guest", False)),
        ("amqp://h/", ((("h", 5672),), "/", "guest", "guest", False)),
        ("amqp://h:5673", ((("h", 5673),), "/", "guest", "guest", False)),
        ("amqp://u:p@h/%2f", ((("h", 5672),), "/", "u", "p", False)),
        ("amqp://u:p@h/%2Fteam%2Fa", ((("h", 5672),), "/team/a", "u", "p", False)),
        ("amqp://u%40x:p%3A%2F%40%23@h/v", ((("h", 5672),), "v", "u@x", "p:/@#", False)),
        ("amqp://u:a:b@h/v", ((("h", 5672),), "v", "u", "a:b", False)),
        ("amqp://u:a@b@h/v", ((("h", 5672),), "v", "u", "a@b", False)),
        ("amqp://u:@h/v", ((("h", 5672),), "v", "u", "", False)),
        ("amqp://u:p@[::1]:5673/v", ((("::1", 5673),), "v", "u", "p", False)),
        ("amqp://[fe80::1]/v", ((("fe80::1", 5672),), "v", "guest", "guest", False)),
        (
            "amqp://u:p@one:1,two,[::1]:3/v",
            ((("one", 1), ("two", 5672), ("::1", 3)), "v", "u", "p", False),
        ),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: tuple[Any, ...]) -> None:
    assert parts(VirtualHost(url)) == expected


def test_a_blocking_connection_tries_all_servers_and_never_waits_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[Any] = []
    monkeypatch.setattr(pika, "BlockingConnection", tried.extend)
    _ = VirtualHost("amqp://u:p@one,two:1/v").blocking_connection
    assert [(p.host, p.port, p.virtual_host, p.heartbeat) for p in tried] == [
        ("one", 5672, "v", HEARTBEAT),
        ("two", 1, "v", HEARTBEAT),
    ]
    VirtualHost("amqp://h/").connect_blocking(7)
    assert tried[2].heartbeat == 7
    assert {p.blocked_connection_timeout for p in tried} == {BLOCKED_TIMEOUT}
    assert {(p.socket_timeout, p.stack_timeout, p.connection_attempts) for p in tried} == {
        (5, 10, 1)
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, ((("localhost", 5672),), "/", "guest", "guest", False)),
        ({"secure": True}, ((("localhost", 5671),), "/", "guest", "guest", True)),
        (
            {"host": "h", "name": "v", "port": 1, "username": "u", "password": "p%40"},
            ((("h", 1),), "v", "u", "p%40", False),
        ),
        ({"host": "one,two:2"}, ((("one", 5672), ("two", 2)), "/", "guest", "guest", False)),
        ({"name": "%2Fv"}, ((("localhost", 5672),), "/v", "guest", "guest", False)),
    ],
)
def test_arguments_do_as_well(arguments: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert parts(VirtualHost(**arguments)) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://h", ((("h", 7),), "n", "u", "p", False)),
        ("amqp://other:word@h:1/v", ((("h", 1),), "v", "other", "word", False)),
        ("amqp://other@h", ((("h", 7),), "n", "other", "p", False)),
    ],
)
def test_parts_left_out_of_the_url_come_from_the_other_arguments(
    url: str, expected: tuple[Any, ...]
) -> None:
    assert parts(VirtualHost(url, name="n", port=7, username="u", password="p")) == expected


def test_one_server_is_host_and_port() -> None:
    host = VirtualHost("amqp://one:1,two:2/v")
    assert (host.host, host.port) == ("one", 1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "h:5672/v",
        "http://h/v",
        "redis://h",
        "amqp:/h",
        "amqp://",
        "amqp:///v",
        "amqp://u:p@/v",
        "amqp://h:port/v",
        "amqp://h:99999/v",
        "amqp://h:-1/v",
        "amqp://one,,two/v",
        "amqp://one,/v",
        "amqp://[::1/v",
        "amqp://h/v?heartbeat=5",
        "amqp://h/v#x",
        f"amqp://u:{SECRET}/a@h:5672/v",
        f"amqp://u:{SECRET}?a@h:5672/v",
        f"amqp://u:{SECRET}#a@h:5672/v",
        f"amqp://u:1/{SECRET}@h:5672/v",
        f"http://u:{SECRET}@h/v",
        f"amqp://u:{SECRET}@h:x/v",
        f"amqp://u:{SECRET}@[h/v",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_with_advice_and_without_the_password(
    url: str,
) -> None:
    with pytest.raises(ValueError, match="a broker URL") as caught:
        VirtualHost(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@given(st.text(max_size=20))
def test_any_password_can_be_percent_encoded(password: str) -> None:
    host = VirtualHost(f"amqp://u:{quote(password, safe='')}@h:5672/v")
    assert parts(host) == ((("h", 5672),), "v", "u", password, False)


@given(st.text("@:/?#[]%,x1", min_size=1, max_size=8))
def test_a_password_that_is_not_encoded_never_comes_to_light(noise: str) -> None:
    """Whatever the URL then means, if anything: no part of the password is shown."""
    url = f"amqp://u:{noise}{SECRET}{noise}@h:5672/v"
    try:
        host = VirtualHost(url)
    except ValueError as error:
        shown = str(error)
    else:
        shown = f"{host} {host!r} {host.label} {host.servers} {host.name} {host.username}"
    assert SECRET not in shown


@given(st.text("abcdefgh", min_size=6).map("Pw-{}".format))
def test_text_and_representation_show_user_server_and_name_but_no_password(word: str) -> None:
    host = VirtualHost(host="h", name="v", username="me", password=word)
    assert str(host) == "amqp://me@h:5672/v"
    assert repr(host) == "<VirtualHost amqp://me@h:5672/v>"
    assert host.label == "h:5672/v"


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("amqp://one:1,two/v", "one:1,two:5672/v"),
        ("amqps://h/", "h:5671/%2F"),
        ("amqp://h/a%2Fb", "h:5672/a%2Fb"),
        ("amqp://[::1]:5673/v", "[::1]:5673/v"),
    ],
)
def test_the_label_reads_as_the_part_of_the_url(url: str, label: str) -> None:
    host = VirtualHost(url)
    assert host.label == label
    assert VirtualHost(f"{'amqps' if host.secure else 'amqp'}://{label}") == host


def test_hosts_are_values() -> None:
    one, same = (
        VirtualHost("amqp://u:p@h/v"),
        VirtualHost(host="h", name="v", username="u", password="p"),
    )
    assert one == same
    assert hash(one) == hash(same)
    assert len({one, same}) == 1
    for other in (
        VirtualHost("amqp://u:p@h:1/v"),
        VirtualHost("amqp://u:p@h/w"),
        VirtualHost("amqp://x:p@h/v"),
        VirtualHost("amqp://u:x@h/v"),
        VirtualHost("amqps://u:p@h:5672/v"),
        "amqp://u@h:5672/v",
    ):
        assert one != other


def test_pika_gets_what_it_needs() -> None:
    host = VirtualHost("amqp://u:p%40@one:1,two:2/v")
    first, second = host.parameters(), host.parameters(host.servers[1])
    assert (first.host, first.port, first.virtual_host) == ("one", 1, "v")
    assert (second.host, second.port) == ("two", 2)
    assert (first.credentials.username, first.credentials.password) == ("u", "p@")
    assert first.ssl_options is None
    assert first.connection_attempts == 1
    assert first.heartbeat


def test_with_tls_certificate_and_host_name_are_checked() -> None:
    options = VirtualHost("amqps://u:p@h/v").parameters().ssl_options
    assert options is not None
    assert options.server_hostname == "h"
    assert options.context.verify_mode == ssl.CERT_REQUIRED
    assert options.context.check_hostname


def test_tls_is_1_2_at_least() -> None:
    assert VirtualHost("amqps://h").tls_context().minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("url", "files", "text"),
    [
        ("amqp://u:p@h/", {"ca_file": "a"}, "for TLS only"),
        ("amqp://u:p@h/", {"certificate_file": "a", "key_file": "b"}, "for TLS only"),
        (f"amqp://u:{SECRET}@h/", {"secure": True}, "'secure' asks for TLS"),
        ("amqps://u:p@h/", {"key_file": "b"}, "a key_file needs the certificate_file"),
        ("amqps://u:p@h/", {"external": True}, "'external' needs the certificate_file"),
    ],
)
def test_files_that_would_not_be_used_are_refused(
    url: str, files: dict[str, Any], text: str
) -> None:
    """Who names an authority believes that the connection is encrypted."""
    with pytest.raises(ValueError, match=text) as caught:
        VirtualHost(url, **files)
    assert SECRET not in str(caught.value)


def test_files_make_another_host() -> None:
    one = VirtualHost("amqps://u:p@h/", ca_file="a", certificate_file="b", key_file="c")
    assert one == VirtualHost("amqps://u:p@h/", ca_file="a", certificate_file="b", key_file="c")
    assert one != VirtualHost("amqps://u:p@h/")
    assert one != VirtualHost("amqps://u:p@h/", ca_file="a", certificate_file="b")


def test_who_logs_in_by_a_certificate_is_not_who_logs_in_by_a_name() -> None:
    one = VirtualHost("amqps://u:p@h/", certificate_file="b", external=True)
    other = VirtualHost("amqps://u:p@h/", certificate_file="b")
    assert one != other
    assert (str(one), one.user) == ("amqps://h:5671/%2F", "that the certificate names")
    assert (str(other), other.user) == ("amqps://u@h:5671/%2F", "'u'")


@pytest.mark.parametrize(
    ("given", "servers"),
    [
        (["one", "two:5673"], (("one", 5672), ("two", 5673))),
        (("one:1", "[::1]:2", "[::1]"), (("one", 1), ("::1", 2), ("::1", 5672))),
        (["one"], (("one", 5672),)),
        (["one,two:2", "three"], (("one", 5672), ("two", 2), ("three", 5672))),
    ],
)
def test_hosts_of_a_cluster_may_be_a_list(
    given: list[str], servers: tuple[tuple[str, int], ...]
) -> None:
    host = VirtualHost(host=given, name="v", username="u", password="p")
    assert parts(host) == (servers, "v", "u", "p", False)
    assert host == VirtualHost(host=",".join(given), name="v", username="u", password="p")


def test_clients_of_a_cluster_begin_with_different_servers() -> None:
    host = VirtualHost(host=["one", "two", "three"])
    orders = [host.shuffled() for _ in range(200)]
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(host.servers))}
    assert {order[0] for order in orders} == set(host.servers)


def test_port_and_tls_hold_for_those_of_a_list_that_name_no_port() -> None:
    assert VirtualHost(host=["one", "two:2"], port=7).servers == (("one", 7), ("two", 2))
    assert VirtualHost(host=["one", "two:2"], secure=True).servers == (("one", 5671), ("two", 2))


@pytest.mark.parametrize("given", [[], [""], ["one", ""], ["one", "two:x"]])
def test_a_list_without_usable_hosts_is_refused(given: list[str]) -> None:
    with pytest.raises(ValueError, match="needs a host"):
        VirtualHost(host=given)
