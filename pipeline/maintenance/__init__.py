"""Maintenance of the artifacts folder: status, verify, retention, schedules, doctor.

Start with `status.py`.
"""
