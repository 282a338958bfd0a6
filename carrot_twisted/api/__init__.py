# SPDX-License-Identifier: Apache-2.0
"""The monitor's JSON API, at django-carrot's addresses below ``api/``."""
