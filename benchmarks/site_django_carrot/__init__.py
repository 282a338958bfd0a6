# SPDX-License-Identifier: Apache-2.0
"""A tiny Django project with django-carrot, for an old Python."""
