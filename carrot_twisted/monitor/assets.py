# SPDX-License-Identifier: Apache-2.0
"""The style, the scripts and the pictures of the monitor, served by itself.

So a project has nothing to set up for them, and no request leaves the host. A file's address holds
a digest of its content: browsers keep it for ever, and get another one with the next release.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from django.http import Http404, HttpResponse
from django.urls import reverse

if TYPE_CHECKING:
    from django.http import HttpRequest

_OURS = ("carrot_twisted", "static/carrot_twisted")
#: htmx comes with this dependency: no file of others is kept here.
_HTMX = ("django_htmx", "static/django_htmx")
_FILES: dict[str, tuple[tuple[str, str], str]] = {
    "monitor.css": (_OURS, "text/css; charset=utf-8"),
    "theme.js": (_OURS, "text/javascript; charset=utf-8"),
    "monitor.js": (_OURS, "text/javascript; charset=utf-8"),
    "icon.svg": (_OURS, "image/svg+xml"),
    "htmx-4.min.js": (_HTMX, "text/javascript; charset=utf-8"),
}


@dataclass(frozen=True)
class Asset:
    """One file."""

    content: bytes
    content_type: str

    @property
    def digest(self) -> str:
        """Changes with the content."""
        return hashlib.sha256(self.content).hexdigest()[:16]


@cache
def asset(name: str) -> Asset:
    """The file of that name.

    Raises:
        KeyError: there is none.
    """
    (package, folder), content_type = _FILES[name]
    # A text from a template has a class of its own, which paths do not take.
    path = files(package).joinpath(folder, "".join(name))
    return Asset(path.read_bytes(), content_type)


def url_of(name: str) -> str:
    """Where browsers get it."""
    return reverse("carrot-asset", args=[asset(name).digest, name])


def serve(_request: HttpRequest, digest: str, name: str) -> HttpResponse:
    """The view. Anybody may see these: they are the same in every project."""
    if name not in _FILES:
        raise Http404("There is no such file.")
    found = asset(name)
    current = digest == found.digest
    return HttpResponse(
        found.content,
        headers={
            "Content-Type": found.content_type,
            # A page of the last release may ask for a file that has changed since.
            "Cache-Control": "public, max-age=31536000, immutable" if current else "no-cache",
            "X-Content-Type-Options": "nosniff",
        },
    )
