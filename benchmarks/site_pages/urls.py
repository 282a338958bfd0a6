# SPDX-License-Identifier: Apache-2.0
"""Its addresses."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("carrot/", include("carrot_twisted.urls")),
    path("admin/", admin.site.urls),
]
