"""A network from elsewhere becomes a run: everything that is done with a run is done with it too.

runs/<name>/<key>/ is laid out as in run.py, but without a curve and tables, since it was trained elsewhere: its one
checkpoint is that of step 0, and what it scores is not known.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec

from model.config import Preset, TrainConfig
from model.device import Execution
from model.exchange import import_model as foreign
from model.runs import checkpoint
from model.runs.checkpoint import Saved, State
from model.runs.run import CHECKPOINTS, CONFIG, RESULT, SCHEMA, Result
from pipeline import tokenizers
from pipeline.store import artifact, files
from pipeline.store.artifact import Built, Content
from pipeline.store.manifest import Identity

PRESET = "imported"


def adopt(root: Path, folder: Path, name: str, *, tokenizer: str = "", trusted: bool = False) -> Built:
    """Publish the network in a folder of Hugging Face's as the run `name`. `tokenizer` is a reference as `tokenize`
    takes it, "" for what the size of the vocabulary says; `trusted` allows a pickle.

    Raises as `foreign.open_folder`, and BadData or BadConfig for a tokenizer that is not the network's.
    """
    found = foreign.open_folder(folder, trusted=trusted)
    chosen, _ = tokenizers.find(root, tokenizer or foreign.default_tokenizer(found.config))
    foreign.require_tokenizer(found, chosen)
    options = {"stage": SCHEMA, "imported": True, "model": asdict(found.config)}

    def write(draft: Path) -> Content:
        weights = found.weights()
        chosen.save(draft)
        preset = Preset(found.config.family, f"imported from {found.folder.name}", found.config)
        _write(draft / CONFIG, {"preset": PRESET, **asdict(preset)})
        state = State(0, 0.0, None, found.config, TrainConfig(), Execution("fp32", compiled=False, micro_batch=1))
        saved = checkpoint.save(draft / CHECKPOINTS, state, Saved(weights, {}))
        parameters = found.config.parameters
        _write(draft / RESULT, Result(steps=0, tokens=0, parameters=parameters, last=saved.name, best=saved.name))
        return Content({"steps": 0, "tokens": 0, "parameters": parameters})

    return artifact.build(root, Identity("runs", name, options, found.inputs, chosen.fingerprint), write)


def _write(path: Path, content: object) -> None:
    files.write_file(path, msgspec.json.format(msgspec.json.encode(content), indent=2))
