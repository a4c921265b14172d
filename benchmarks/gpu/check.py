"""The table of claims, and the check that measures them one after the other."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import torch

from benchmarks.gpu import commands, memory, numbers, speed
from benchmarks.gpu.claims import Claim, Verdict, judge
from benchmarks.gpu.machine import Machine
from model.device import pick_device
from pipeline.errors import BadConfig
from pipeline.store import files

_MINUTES = 10  # after which no further claim is begun

CLAIMS: tuple[Claim, ...] = (
    *(
        Claim(f"first loss, {name}", "the first loss in fp32 is that of a CPU", partial(numbers.first_step, name=name))
        for name in ("shuihu-fast", "qwen-8m")
    ),
    *(
        Claim(f"losses, {name}", "20 losses in fp32 are those of a CPU", partial(numbers.parity, name=name))
        for name in ("shuihu-fast", "qwen-8m")
    ),
    Claim("bfloat16", "bfloat16 learns as fp32 does", numbers.bfloat16, slow=True),
    Claim("attention", "no preset needs the slow kernel of attention", numbers.attention),
    Claim("batches", "batches are equal, however they are loaded", numbers.batches),
    Claim("NaN", "a step whose gradient is not a number changes nothing", numbers.nan_gradient),
    Claim("host reads", "a step waits for one value of the device", speed.host_reads),
    Claim("resumption", "a killed training resumes to the same bits", commands.resumption),
    Claim(
        "resumption, compiled",
        "a killed training of a compiled network resumes to the same bits",
        partial(commands.resumption, compile="yes"),
        slow=True,
    ),
    Claim(
        "resumed losses", "without deterministic=true, to nearly the same losses", commands.nondeterministic_resumption
    ),
    Claim("SIGTERM", "a signal ends a training with everything saved", commands.termination),
    Claim("anneal", "--on-stop anneal publishes a run", commands.annealing),
    Claim("greedy", "bfloat16 weights generate the text of fp32", numbers.greedy),
    Claim("compiled losses", "the compiled network has the losses of the eager one", numbers.compiled, slow=True),
    *(
        Claim(
            f"graphs, {name}", "a training is one graph, compiled once", partial(numbers.graphs, name=name), slow=True
        )
        for name in ("shuihu-fast", "gpt2-124m", "fast-124m")
    ),
    *(
        Claim(f"memory, {name}", "the plan names the memory that is needed", partial(memory.estimated_peak, name=name))
        for name in ("shuihu-fast", "gpt2-124m", "fast-124m")
    ),
    Claim("filled card", "with 1 GiB free, fewer sequences are computed at once", memory.filled_card),
    Claim("memory of the head", "the loss needs little memory", memory.head_peak),
    Claim("waiting", "a training does not wait for batches", numbers.waiting, of_gpus=True, slow=True),
    Claim("plain loop", "a step is as fast as a plain loop's", speed.plain_loop, slow=True),
    Claim(
        "MFU, gpt2-124m",
        "the model FLOP/s are near those of others",
        partial(speed.utilisation, name="gpt2-124m", data_centre=35, consumer=45),
        of_gpus=True,
    ),
    Claim(
        "MFU, fast-124m",
        "the model FLOP/s are near those of others",
        partial(speed.utilisation, name="fast-124m", data_centre=40, consumer=50),
        of_gpus=True,
    ),
    Claim("shuihu-8m", "launches do not limit a small network", speed.small_preset, of_gpus=True),
    Claim(
        "optimizer, gpt2-124m",
        "the optimizers take little of a step",
        partial(speed.optimizer_share, name="gpt2-124m", high=15),
        of_gpus=True,
    ),
    Claim(
        "optimizer, fast-124m",
        "the optimizers take little of a step",
        partial(speed.optimizer_share, name="fast-124m", high=3),
        of_gpus=True,
    ),
    Claim("head", "the output head is nearly as fast as its products", speed.head, of_gpus=True),
    Claim("evaluation", "256 KiB are evaluated in a second", speed.evaluation, of_gpus=True),
    Claim("generating", "one text is generated fast", speed.generating, of_gpus=True),
    *(
        Claim(
            f"2 processes, {parallel} {optimizer}",
            "two processes learn as one does",
            partial(commands.processes, parallel=parallel, optimizer=optimizer),
            slow=True,
        )
        for parallel, optimizer in (("ddp", "adamw"), ("ddp", "muon"), ("fsdp", "adamw"), ("fsdp", "muon"))
    ),
    Claim("demo", "`inkstone demo` takes a minute", commands.demo, of_gpus=True, slow=True),
)


def bench(name: str, report: Callable[[str], None], *, quick: bool = False) -> tuple[list[Verdict], Path]:
    """Measure the claims on the device `name`, and write the verdicts to a JSON file in this folder.

    Raises BadConfig if this machine does not have the device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise BadConfig("no CUDA device on this machine", hint="--device cpu measures the claims that a CPU allows")
    device = pick_device(name, report)
    start, verdicts = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(device, Path(folder), quick)
        fields = machine.describe()
        report(", ".join(f"{key} {value}" for key, value in fields.items()))
        for claim in CLAIMS:
            report(f"{claim.name}: {claim.sentence}")
            verdicts.append(judge(claim, machine, start + 60 * _MINUTES - time.monotonic()))
    path = Path(f"gpu-check-{re.sub('[^A-Za-z0-9]+', '-', machine.name)}.json")
    content = {"machine": fields, "seconds": time.monotonic() - start, "claims": [row.fields() for row in verdicts]}
    files.write_file(path, msgspec.json.format(msgspec.json.encode(content)))
    return verdicts, path
