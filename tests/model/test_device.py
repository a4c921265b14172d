"""Devices: which one is taken, what it can do, and one line if it cannot be used; without a GPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from model import device as devices
from model.generation import quantization
from pipeline.errors import BadConfig
from tests.support.faults import ROOT
from tests.support.gpu import use_gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_gpus_are_hidden_from_the_tests_and_their_processes() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert torch.cuda.device_count() == 0


FAULTS = """
import resource, torch
from model import device
device.pick_device("cpu")
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator has no such setting")
def test_memory_of_freed_tensors_is_used_again() -> None:
    """Without a page fault for each 4 KiB of 64 MiB, once the process has grown. In a process with nothing else."""
    process = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(process.stdout) < 1000


def test_gpu_without_kernels_in_this_build_gives_one_line_and_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, name="Tesla P100")

    def fail(*arguments: object, **options: Any) -> torch.Tensor:
        if torch.device(options["device"]).type == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
        return torch.zeros(1)

    monkeypatch.setattr(torch, "ones", fail)
    lines: list[str] = []
    assert devices.pick_device("auto", lines.append) == CPU
    assert len(lines) == 1
    assert "no kernel image" in lines[0]
    with pytest.raises(BadConfig, match="device cuda cannot be used: CUDA error: no kernel image"):
        devices.pick_device("cuda")


def test_old_driver_gives_one_line_and_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update it.")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "init", fail)
    lines: list[str] = []
    assert devices.pick_device("auto", lines.append) == CPU
    assert lines == ["the GPU cannot be used (The NVIDIA driver on your system is too old (found version 11040))"]


@pytest.mark.parametrize("name", ["cuda:1", "mps", "cuda:99999", "gpu"])
def test_named_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BadConfig, match=f"no device '{name}' on this machine") as caught:
        devices.pick_device(name)
    assert caught.value.exit_code == 78
    assert caught.value.hint == "use one of: cuda, cpu"


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(monkeypatch, name="Tesla T4", get_device_properties=lambda device: SimpleNamespace(major=7))
    assert devices.pick_precision(CUDA) == "fp32"
    with pytest.raises(BadConfig, match="needs bfloat16 instructions, and Tesla T4 has none"):
        devices.pick_precision(CUDA, "bf16")
    devices._has_fast_bfloat16.cache_clear()


def test_bfloat16_is_that_of_the_named_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may be the current GPU."""
    majors = {None: 7, 0: 7, 1: 8}
    use_gpu(
        monkeypatch,
        is_available=lambda: True,
        current_device=lambda: 0,
        get_device_properties=lambda device: SimpleNamespace(major=majors[torch.device(device).index]),
    )
    second = torch.device("cuda:1")
    assert (devices.pick_precision(CUDA), devices.pick_precision(second, "bf16")) == ("fp32", "bf16")
    assert not quantization._multiplies_bfloat16(CUDA)
    assert quantization._multiplies_bfloat16(second)
    devices._has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize(("rank", "expected"), [("3", "cuda:3"), ("0", "cuda"), ("8", "cuda"), (None, "cuda")])
def test_process_tries_the_gpu_of_its_own(rank: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processes that try the first one take 4 GB of it."""
    use_gpu(monkeypatch, device_count=lambda: 8)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    tried: list[torch.device] = []

    def ones(count: int, device: torch.device) -> torch.Tensor:
        tried.append(device)
        return torch.zeros(count)

    monkeypatch.setattr(torch, "ones", ones)
    assert devices.pick_device("cuda") == CUDA
    assert tried == [torch.device(expected)]


def test_torch_says_nothing_about_modes_that_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Large products of a small GPU, and TF32."""
    from torch._inductor import compile_fx, utils

    use_gpu(monkeypatch, is_available=lambda: True, get_device_capability=lambda: (8, 6))
    properties = SimpleNamespace(multi_processor_count=28)  # of an RTX 3060
    monkeypatch.setattr("torch._inductor.utils.DeviceProperties.create", lambda device: properties)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices.pick_device("cpu")
        assert not utils.is_big_gpu.__wrapped__(CUDA)
        compile_fx._warn_tf32_disabled.__wrapped__()
    assert (caught, caplog.records) == ([], [])


def test_memory_that_the_allocator_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    use_gpu(
        monkeypatch,
        mem_get_info=lambda device: (1 << 20, 16 << 30),
        memory_reserved=lambda device: 9 << 30,
        memory_allocated=lambda device: 4 << 30,
    )
    assert devices.free_memory(CUDA) == (5 << 30) + (1 << 20)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835e12, 60e12),
        ("NVIDIA H200", 989e12, 67e12),
        ("NVIDIA H20", 148e12, 44e12),
        ("NVIDIA H800", 989e12, 67e12),
        ("NVIDIA A800-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("Tesla T4", None, 8.1e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 4090 D", 147e12, 73.5e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA GeForce RTX 3060", 25.4e12, 12.7e12),
        ("NVIDIA GeForce RTX 3060 Ti", 32.4e12, 16.2e12),
        ("NVIDIA TITAN Xp", None, None),
    ],
)
def test_peak_is_that_of_the_very_card_and_precision(
    name: str, bf16: float | None, fp32: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_gpu(monkeypatch, name=name)
    assert devices.peak_flops(CUDA, "bf16") == pytest.approx(bf16)
    assert devices.peak_flops(CUDA, "fp32") == pytest.approx(fp32)
    assert devices.peak_flops(CPU) is None
