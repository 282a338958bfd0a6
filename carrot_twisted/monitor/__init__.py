# SPDX-License-Identifier: Apache-2.0
"""The monitor: the pages on which people see their tasks, and act on them."""
