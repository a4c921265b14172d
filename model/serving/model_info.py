"""Description of the served run for clients and the web page: names, numbers, loss curve, example prompts, the page."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.generation.sampling import SampleOptions
from model.generation.session import Session
from model.runs.run import Result, read_result
from pipeline.runtime.regular_file import read_regular
from pipeline.store.generations import read_run_info
from pipeline.tokenizers import ChatTokenizer, Tokenizer

_FOLDER = Path(__file__).with_name("page")
_SCRIPTS = ("strings.js", "server.js", "tokens.js", "write.js", "chat.js", "about.js")  # in the order of their use
_MAX_BEGINNINGS = 3
_MAX_POINTS = 400  # of the training loss, more than a screen can show


@dataclass(frozen=True)
class PageContent:
    """Parts of the web page that the caller of `serve` provides.

    `style` is the stylesheet that pages and reports share, `beginnings` are prompts to choose from, `characters` is the
    length of the training text (0 if unknown), and `report` renders the run's report in a language, "en" or "zh".
    """

    style: str = ""
    beginnings: Sequence[str] = ()
    characters: int = 0
    report: Callable[[str], bytes] | None = None


@dataclass(frozen=True)
class ModelInfo:
    """Names and summary of the served run, and its web page. `about` is the data of the run for the page."""

    name: str
    ref: str
    tokenizer: Tokenizer
    summary: Mapping[str, Any]
    about: Mapping[str, Any]
    page: bytes
    report: Callable[[str], bytes] | None
    created: int  # Unix time
    block_size: int


def load_model_info(session: Session, content: PageContent, *, public: bool = True) -> ModelInfo:
    """Describe the run of a session. Unless `public`, the page contains no text of the run and has no report."""
    run, tokenizer, result = session.run, session.tokenizer, read_result(session.run.path)
    bits = result.best_bits_per_char if session.checkpoint == "best" else result.bits_per_char
    base = tokenizer.base if isinstance(tokenizer, ChatTokenizer) else tokenizer
    has_chat = base is not tokenizer
    summary = {
        "parameters": result.parameters,
        "steps": result.steps,
        "bits_per_char": bits,
        "tokenizer": {"name": tokenizer.name, "kind": base.kind, "ids": tokenizer.vocab_size},
        "trained_on": next((entry.name for entry in run.manifest.inputs if entry.role == "tokens"), ""),
    }
    sample = _last_sample(run.file("samples.jsonl")) if public and not has_chat else None
    beginnings = [sample["prompt"] if sample else "", *content.beginnings] if public else []
    report = content.report if public else None
    about = {
        **summary,
        "run": run.ref,
        "model": run.manifest.name,
        "characters": content.characters,
        "task": result.task,
        "seconds": result.seconds,
        "finished": read_run_info(run.path).finished,
        "baselines": result.baselines,
        "curve": _curve(run.file("metrics.csv"), result),
        "sample": sample,
        "beginnings": list(dict.fromkeys(filter(None, beginnings)))[:_MAX_BEGINNINGS],
        "has_report": report is not None,
        "has_chat": has_chat,
    }
    return ModelInfo(
        run.manifest.name,
        run.ref,
        tokenizer,
        summary,
        about,
        _page(content.style),
        report,
        int(time.time()),
        session.model.config.block_size,
    )


def _page(style: str) -> bytes:
    """Return the web page with its style and script in it, and its sliders at the defaults of sampling."""

    def read(name: str) -> str:
        return (_FOLDER / name).read_text(encoding="utf-8")

    page = read("page.html")
    for name in ("temperature", "top_p", "min_p"):
        page = page.replace(f"{{{name}}}", str(getattr(SampleOptions, name)))
    page = page.replace("{style}", f"{style}\n{read('page.css')}")
    return page.replace("{script}", '"use strict";\n' + "\n".join(map(read, _SCRIPTS))).encode()


def _curve(metrics: Path, result: Result) -> dict[str, list[tuple[int, float]]]:
    """Return the losses in bits per character by step; empty lists if they were not measured.

    Training losses, in nats per token, are converted by the ratio of the evaluation with the greatest loss, where
    rounding matters least.
    """
    if not metrics.is_file() or result.bits_per_char is None:
        return {"training": [], "validation": []}
    rows = list(csv.DictReader(read_regular(metrics).decode().splitlines()))
    validation = [(int(row["step"]), float(row["bits_per_char"])) for row in rows if row["bits_per_char"]]
    evaluations = [(float(row["val_loss"]), float(row["bits_per_char"])) for row in rows if row["bits_per_char"]]
    nats, bits = max(evaluations, default=(1.0, 1.0))
    losses = [(int(row["step"]), float(row["train_loss"])) for row in rows if row["train_loss"]]
    training = [(step, round(loss * bits / nats, 4)) for step, loss in losses]
    return {"training": training[:: 1 + len(training) // _MAX_POINTS], "validation": validation}


def _last_sample(samples: Path) -> dict[str, Any] | None:
    """Return the last text that was written during the training: its step, prompt and continuation."""
    lines = read_regular(samples).splitlines() if samples.is_file() else []
    return json.loads(lines[-1]) if lines else None
