# SPDX-License-Identifier: Apache-2.0
"""What a project with django-carrot 1.5.0 leaves behind: tables, messages, and its own code."""
