# SPDX-License-Identifier: Apache-2.0
"""The monitor, at an address that is not the usual one."""

from __future__ import annotations

from django.urls import include, path

urlpatterns = [path("some/where/", include("carrot_twisted.urls"))]
