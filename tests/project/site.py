# SPDX-License-Identifier: Apache-2.0
"""A site with pages of its own, and the monitor."""

from __future__ import annotations

from django.urls import include, path

urlpatterns = [
    path("", include("tests.project.pages")),
    path("deep/", include([path("in/", include("carrot_twisted.urls"))])),
]
