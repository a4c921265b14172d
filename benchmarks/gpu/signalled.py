"""Run a command that sends itself a signal before a step: `python -m benchmarks.gpu.signalled KILL 35 FILE WORD...`.

The time of the signal is written to FILE. Sent from within, it comes at the same step on every machine.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from cli import main
from model.training.learner import Learner

if __name__ == "__main__":
    name, step, file, *words = sys.argv[1:]
    calls, take_step = itertools.count(), Learner.step

    def signalled_step(*arguments: Any) -> Any:
        if next(calls) == int(step):
            Path(file).write_text(str(time.time()))
            os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
        return take_step(*arguments)

    Learner.step = signalled_step  # type: ignore[assignment, method-assign]
    sys.exit(main(words))
