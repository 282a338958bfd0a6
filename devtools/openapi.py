# SPDX-License-Identifier: Apache-2.0
"""Writes the description of the JSON API, from its code: ``python3 run.py openapi``.

What each address takes and answers is said by the class that answers it; the tool that makes
OpenAPI of that is needed here only, not where the API runs.
"""

from __future__ import annotations

import json
from typing import Any

import django
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.fields import Field
from rest_framework.serializers import BaseSerializer

from carrot_twisted import __version__
from devtools.environment import TOP

FILE = TOP / "carrot_twisted" / "api" / "openapi.json"
#: Of every answer that says why not: a sentence, or sentences by field.
_ERROR = {
    "type": "object",
    "properties": {"detail": {"type": "string"}},
    "additionalProperties": {"type": "array", "items": {"type": "string"}},
}
_WHY = {
    400: "Something that was sent is wrong: what, by field, or in detail.",
    401: "Nobody is logged in.",
    403: "The user may not do that, or the CSRF token is missing.",
    404: "There is no such thing, or no such page.",
    409: "It is not in a state in which that can be done.",
    503: "A broker does not answer.",
}


class Schema(AutoSchema):
    """Reads ``takes``, ``gives``, ``parameters`` and ``errors`` of an Endpoint."""

    @property
    def _endpoint(self) -> Any:
        return self.view

    def get_request_serializer(self) -> Any:
        return self._endpoint.takes.get(self.method)

    def get_response_serializers(self) -> Any:
        status, serializer = self._endpoint.gives[self.method]
        if isinstance(serializer, Field) and not isinstance(serializer, BaseSerializer):
            serializer = self._map_serializer_field(serializer, "response")
        reasons = (*self._endpoint.errors.get(self.method, ()), 401, 403)
        errors = {code: OpenApiResponse(_ERROR, description=_WHY[code]) for code in sorted(reasons)}
        return {status: serializer, **errors}

    def get_override_parameters(self) -> list[Any]:
        return [
            # explode: a list has commas between its parts.
            OpenApiParameter(name, schema, style="form", explode=False, description=text)
            for name, (text, schema) in self._endpoint.parameters.items()
        ]

    def get_auth(self) -> list[Any]:
        return [{"session": []}]


def description() -> str:
    """The description of the code as it is, as text. Django is set up."""
    from carrot_twisted.api import urls
    from carrot_twisted.api.endpoint import Endpoint

    Endpoint.schema = Schema()
    made: dict[str, Any] = SchemaGenerator(patterns=urls.urlpatterns).get_schema(public=True)
    made["info"] = {
        "title": "carrot-twisted",
        "version": __version__,
        "description": "The JSON API of the monitor, at django-carrot's addresses.",
    }
    # From here, wherever that is.
    made["servers"] = [{"url": ".."}]
    # The parameter "fields" says which there are.
    del made["components"]["schemas"]["MessageLog"]["required"]
    made["components"]["securitySchemes"] = {
        "session": {"type": "apiKey", "in": "cookie", "name": "sessionid"}
    }
    return json.dumps(made, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    """Write it."""
    django.setup()
    FILE.write_text(description(), encoding="utf-8")


if __name__ == "__main__":
    main()
