# SPDX-License-Identifier: Apache-2.0
"""The description of the JSON API, in the form of OpenAPI: for programs that make clients of it.

It is made from the code, by ``python3 run.py openapi``, and kept beside it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from rest_framework.response import Response
from rest_framework.serializers import DictField

from carrot_twisted.api.endpoint import Endpoint

if TYPE_CHECKING:
    from rest_framework.request import Request

FILE = "openapi.json"


class Description(Endpoint):
    """What this API has to offer."""

    gives: ClassVar = {"GET": (200, DictField())}

    def get(self, request: Request) -> Response:
        """As OpenAPI 3."""
        return Response(_description())


@cache
def _description() -> Any:
    return json.loads(files("carrot_twisted.api").joinpath(FILE).read_text(encoding="utf-8"))
