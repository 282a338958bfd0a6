# SPDX-License-Identifier: Apache-2.0
"""How long the pages of the monitor take with many rows, beside those of others."""
