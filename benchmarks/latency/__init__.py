# SPDX-License-Identifier: Apache-2.0
"""How long a published task waits until it starts, at a steady rate."""
