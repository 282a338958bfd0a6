# SPDX-License-Identifier: Apache-2.0
"""A tiny Django project with huey, on Redis."""
