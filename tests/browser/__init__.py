# SPDX-License-Identifier: Apache-2.0
"""The monitor in a real browser: pages as people see and use them, with and without scripts."""
