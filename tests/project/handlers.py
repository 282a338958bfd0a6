# SPDX-License-Identifier: Apache-2.0
"""Message handlers of the tests: registered for the services of the tests that ask for them."""

from __future__ import annotations
