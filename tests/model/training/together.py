"""What each process does that the tests start with torchrun: command lines, one after the other, in one start of torch.

`python -m torch.distributed.run --nproc-per-node 2 tests/model/training/together.py FILE`: FILE holds a JSON list of
lists of words. Beside it each process leaves `<rank>.json`: of each command its exit code and what it said.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.distributed as dist

import cli
from model.training import loss_curve as curve
from model.training.learner import Learner

STOP = "--stop-at"  # and a step, before the words of a command: there rank 1 alone gets a signal
_PATIENCE = 120  # seconds


def run(words: list[str]) -> tuple[int, str, str]:
    real, left = Learner.step, int(words[1]) if words[0] == STOP else 0

    def step(learner: Learner, *arguments: object) -> object:
        nonlocal left
        left -= 1
        if left == 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return real(learner, *arguments)  # type: ignore[arg-type]

    out, err = io.StringIO(), io.StringIO()
    Learner.step = step  # type: ignore[method-assign, assignment]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(words[2:] if words[0] == STOP else words)
    finally:
        Learner.step = real  # type: ignore[method-assign]
    return code, out.getvalue(), err.getvalue()


def main(path: Path) -> None:
    signal.alarm(_PATIENCE)  # one that hangs ends, though nobody waits for it any more
    torch.set_num_threads(1)
    curve.draw = lambda table, folder, *_: (folder / "loss.png").write_bytes(b"a picture")  # type: ignore
    begin, end = dist.init_process_group, dist.destroy_process_group
    dist.init_process_group = lambda backend: None if dist.is_initialized() else begin(backend)  # torch can do it once
    dist.destroy_process_group = lambda: None
    found = [run(words) for words in json.loads(path.read_text())]
    end()
    path.with_name(f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    os._exit(0)  # all is written; torch's own threads now and then abort a process that ends (std::terminate)
