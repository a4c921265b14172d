"""What `doctor` says about the device that computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model import device as devices
from model.commands import doctor
from tests.support.gpu import use_gpu


def test_doctor_names_the_gpu_and_what_it_can_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name, capability, memory, driver, bfloat16 and compiler."""
    properties = SimpleNamespace(name="NVIDIA GeForce RTX 3060", major=8, minor=6, total_memory=12_000_000_000)
    use_gpu(
        monkeypatch,
        get_device_properties=lambda index: properties,
        mem_get_info=lambda index=None: (11_000_000_000, 12_000_000_000),
    )
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  560.35.03  Fri Aug 16\nGCC version: 12.2.0\n")
    monkeypatch.setattr(devices, "_DRIVER", driver)
    monkeypatch.setattr(devices, "_problem", lambda device: "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CXX", "none")
    monkeypatch.setenv("PATH", "/nonexistent")
    findings = {finding.name: finding for finding in doctor.device_findings()}
    assert findings["device"].what == "cuda, bf16"
    assert findings["cuda:0"].what == (
        "NVIDIA GeForce RTX 3060, capability 8.6, 11.0 of 12.0 GB free, driver 560.35.03, torch for CUDA 13.0, bfloat16"
    )
    assert findings["compiler"].state == "warn"
    assert "g++" in findings["compiler"].hint


def test_doctor_says_why_a_gpu_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "driver_problem", lambda: "The NVIDIA driver on your system is too old")
    (finding, _) = doctor.device_findings()
    assert finding.state == "warn"
    assert "too old" in finding.what
