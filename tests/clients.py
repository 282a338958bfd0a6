# SPDX-License-Identifier: Apache-2.0
"""Clients of the monitor, its API and the admin, for tests without a browser."""

from __future__ import annotations

from django.contrib.auth.models import Permission, User
from django.test import Client


def client_of(*permissions: str, staff: bool = True, name: str = "ann") -> Client:
    """A client of somebody who has these permissions, and is logged in."""
    user = User.objects.create_user(name, is_staff=staff)
    for permission in permissions:
        user.user_permissions.add(Permission.objects.get(codename=permission.partition(".")[2]))
    client = Client()
    client.force_login(user)
    return client
