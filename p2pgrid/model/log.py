"""Kinds of records in a job's log. Numbers are part of the disk format: never reused."""

from __future__ import annotations

JOB = 1
KEEPERS = 2
GRANT = 3
RECEIPT = 4
PAYLOAD = 5
"""The encoded payload of the receipt before it; addressed by the receipt's ``payload`` digest."""
DECISION = 6
CANCEL = 7
SETTLED = 8
BATCH = 9
"""A derived batch is a blob; a map batch may be carried inside the log of its keepers."""
NAMES = {1: "job", 2: "keepers", 3: "grant", 4: "receipt", 5: "payload", 6: "decision", 7: "cancel", 8: "settled", 9: "batch"}
