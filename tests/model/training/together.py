"""Script of the processes that the tests start with torchrun: it runs several command lines in one start of torch.

`python -m torch.distributed.run --nproc-per-node 2 tests/model/training/together.py FILE`: FILE holds a JSON list of
lists of words. Beside it each process writes `<rank>.json`: exit code, stdout and stderr of each command.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist

import cli
from model.training import loss_curve
from model.training.learner import Learner

STOP = "--stop-at"  # and a step, before the words of a command: rank 1 alone gets a signal at that step
_PATIENCE = 120  # seconds


def run(words: list[str]) -> tuple[int, str, str]:
    original, remaining = Learner.step, int(words[1]) if words[0] == STOP else 0

    def step(learner: Learner, *arguments: object) -> object:
        nonlocal remaining
        remaining -= 1
        if remaining == 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(learner, *arguments)  # type: ignore[arg-type]

    out, err = io.StringIO(), io.StringIO()
    Learner.step = step  # type: ignore[method-assign, assignment]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(words[2:] if words[0] == STOP else words)
    finally:
        Learner.step = original  # type: ignore[method-assign]
    return code, out.getvalue(), err.getvalue()


def main(path: Path) -> None:
    signal.alarm(_PATIENCE)  # end a process that hangs
    torch.set_num_threads(1)
    loss_curve.draw = lambda metrics, folder, *_: (folder / "loss.png").write_bytes(b"a picture")  # type: ignore
    begin, end = dist.init_process_group, dist.destroy_process_group

    def begin_once(*arguments: Any, **options: Any) -> None:  # torch allows one initialisation
        if not dist.is_initialized():
            begin(*arguments, **options)

    def keep_group(*_: object, **__: object) -> None:
        pass

    dist.init_process_group, dist.destroy_process_group = begin_once, keep_group
    results = [run(words) for words in json.loads(path.read_text())]
    end()
    path.with_name(f"{os.environ['RANK']}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # without cleaning up: threads of torch sometimes abort an exiting process (std::terminate)
