# SPDX-License-Identifier: Apache-2.0
"""What Django shows of ``CARROT`` on its page for an error: by the manual's advice no password."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from django.test import RequestFactory
from django.views.debug import technical_500_response

from carrot_twisted import conf
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.virtual_host import VirtualHost

SECRET = "s3cr3t-Wort"
#: For Django, as ROOT_URLCONF.
urlpatterns: list[Any] = []
URL = f"amqp://u:{SECRET}@h/v"


@pytest.fixture(autouse=True)
def _urls(settings: Any) -> None:
    settings.ROOT_URLCONF = __name__


def page() -> str:
    """The page for an error in a view that uses the settings."""
    try:
        conf.current().queue("no such queue")
    except CarrotConfigException:
        request = RequestFactory().get("/", headers={"accept": "text/html"})
        return technical_500_response(request, *sys.exc_info()).content.decode()
    raise AssertionError("there is no such queue")


@pytest.mark.parametrize(
    "broker",
    [
        {"host": "h", "username": "u", "password": SECRET},
        VirtualHost(URL),
        VirtualHost(host="h", username="u", password=SECRET),
    ],
    ids=["dictionary", "VirtualHost of a URL", "VirtualHost"],
)
@pytest.mark.parametrize("debug", [True, False])
def test_a_password_in_a_key_of_its_own_is_not_shown(
    settings: Any, broker: Any, debug: bool
) -> None:
    settings.DEBUG = debug
    settings.CARROT = {"default_broker": broker, "queues": [{"name": "q", "host": broker}]}
    text = page()
    assert "default_broker" in text
    assert "no such queue" in text
    assert SECRET not in text


def test_a_url_in_plain_sight_is_shown_which_is_why_the_manual_advises_against_it(
    settings: Any,
) -> None:
    settings.CARROT = {"default_broker": URL}
    assert SECRET in page()
