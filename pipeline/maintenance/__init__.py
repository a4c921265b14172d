"""Maintenance of the artifacts folder: status, verification, retention, schedules and checks of the machine.

Read `status.py` first, then `verify.py`, `retention.py` (rollback and prune), `schedule.py` and `doctor.py`.
"""
