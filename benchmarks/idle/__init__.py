# SPDX-License-Identifier: Apache-2.0
"""What a service costs that has nothing to do, and how long it takes to begin."""
