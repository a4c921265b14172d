"""The command doctor: checks of this machine by `pipeline`, and of the device that computes."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict

import click

from pipeline import errors
from pipeline.commands.console import Command, Outcome, Settings
from pipeline.commands.maintenance import PROGRAM
from pipeline.errors import DISTRIBUTION
from pipeline.maintenance.doctor import Finding


@click.command(cls=Command)
@click.option("--cron", is_flag=True, help="Check as cron would run it: no terminal and an almost empty environment.")
@click.option("--offline", is_flag=True, help="Do not contact the server that data is downloaded from.")
def doctor(settings: Settings, cron: bool, offline: bool) -> Outcome:
    """Check disk, locks, clock, network, versions.

    Exits with 78 if this machine cannot run Inkstone reliably. The checks leave nothing behind.
    """
    from pipeline.maintenance import doctor as checks
    from pipeline.sources.catalogue import HUB
    from pipeline.sources.http import server_date

    if cron:
        options = ["--offline"] if offline else []
        command = [sys.executable, str(PROGRAM), "--artifacts", str(settings.root.absolute()), "doctor", *options]
        process = checks.under_cron(command)
        lines = (process.stdout + process.stderr).splitlines()
        result = "failed" if process.returncode else "unchanged"
        return Outcome(result, extra={"output": lines}, lines=lines, always=True, exit_code=process.returncode)
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    with settings.progress.wait("checking this machine"):
        findings = checks.examine(
            settings.root, DISTRIBUTION, ask=None if offline else lambda: server_date(endpoint, settings.progress.stop)
        )
        findings += device_findings()
    failed = any(finding.state == "fail" for finding in findings)
    return Outcome(
        "failed" if failed else "unchanged",
        path=settings.root,
        extra={"findings": [asdict(finding) for finding in findings]},
        lines=[
            f"{finding.state:<5} {finding.name:<14} {finding.what}" + (f" — {finding.hint}" if finding.hint else "")
            for finding in findings
        ],
        always=True,
        exit_code=errors.BadConfig.exit_code if failed else 0,
    )


def device_findings() -> list[Finding]:
    """Describe the device that `--device auto` takes, every GPU, and the compiler."""
    from model import device as devices

    problems: list[str] = []
    device = devices.pick_device("auto", problems.append)
    findings = [
        Finding("device", "warn", problem, "update the driver, or install another build of torch; see docs/training.md")
        for problem in problems
    ]
    if not problems:
        findings.append(Finding("device", "ok", f"{device}, {devices.pick_precision(device)}"))
    findings += [Finding(f"cuda:{index}", "ok", line) for index, line in enumerate(devices.describe_gpus())]
    if devices.has_compiler():
        findings.append(Finding("compiler", "ok", "a C++ compiler, for torch.compile"))
    else:
        hint = "install g++, and the headers of Python (python3-dev)" if device.type == "cuda" else ""
        findings.append(Finding("compiler", "warn" if hint else "ok", "none: networks run without torch.compile", hint))
    return findings
