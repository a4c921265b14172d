"""Write pipeline/store/released.json: `make digests`, after a change of code that decides bytes.

For each stage the table has its SCHEMA, a digest of what it makes of reference texts (bundled ones and, where they are
present, shared ones), and the sha256 of its source files. A stage that makes other bytes than before must have another
SCHEMA; otherwise nothing is written.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from model.exchange import import_model
from model.runs import plan as plans
from model.runs.run import read_result
from model.training import stage as training
from pipeline import tokenizers
from pipeline.clean import stage as clean_stage
from pipeline.clean.options import CleanOptions
from pipeline.readers import compression
from pipeline.runtime.progress import SilentProgress
from pipeline.sources.inputs import resolve_inputs
from pipeline.store import code
from pipeline.store.artifact import Artifact
from pipeline.store.code import RELEASED, Code, Golden, Released
from pipeline.tokenizers import Characters
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokens import counting, reuse
from pipeline.tokens import stage as tokens_stage
from pipeline.tokens.options import TokenizeOptions
from pipeline.tokens.stage import TokenizeInputs
from tests.conftest import ROOT, SHARED

STAGES: dict[str, tuple[int, Code]] = {
    "clean": (clean_stage.SCHEMA, clean_stage.CODE),
    "train-tokenizer": (tokenizers_stage.SCHEMA, tokenizers_stage.CODE),
    "tokenize": (tokens_stage.SCHEMA, reuse.CODE),
    "tokenize (counting)": (counting.SCHEMA, counting.CODE),
    "train": (plans.SCHEMA, plans.CODE),
    "import-model": (plans.SCHEMA, import_model.CODE),  # without reference texts
}
_NOVEL, _ENGLISH = ROOT / "pipeline/sample/yanshan.txt", ROOT / "pipeline/sample/sample.jsonl.zst"
_MAX_DIFFERENCE = 0.002  # nats, of losses on two processors
_CLEAN_OPTIONS: dict[Path, dict[str, Any]] = {
    _NOVEL: {"unit": "paragraph"},
    _ENGLISH: {},
    SHARED / "data/bench/english_val.txt": {"unwrap": True, "quotes": "strip"},
    SHARED / "data/bench/shuihu_val.txt": {"notes": ("（）=drop",), "quotes": "corner", "verse": "own-unit"},
    SHARED / "data/chinese-poetry/lunyu.json": {"dedup": "exact", "unit": "sentence"},
}
_KINDS: dict[str, int | str] = {"bpe": 2500, "unigram": "auto", "bbpe": 1000, "char": "auto"}
_TRAININGS: dict[str, dict[str, object]] = {  # settings of small trainings, by preset
    "mini": {"steps": 20, "dropout": 0.1},
    "sample": {"steps": 10, "width": 32, "layers": 2, "block_size": 32, "batch_size": 4},
    "qwen-8m": {"steps": 10, "width": 32, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 64, "block_size": 32},
}


def golden_of(stage: str) -> dict[str, Golden]:
    """Return the results of a stage for the reference texts that are present. No stage reads another's artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        makers = {
            "clean": _corpora,
            "train-tokenizer": _tokenizers,
            "tokenize": _tokens,
            "tokenize (counting)": lambda root: [("counting", counting.build(root).artifact)],
        }
        if stage == "train":
            return dict(_losses(root))
        return {name: _golden(artifact) for name, artifact in makers[stage](root)} if stage in makers else {}


def _golden(artifact: Artifact) -> Golden:
    manifest = artifact.manifest
    content = msgspec.json.encode([manifest.files, manifest.counts, manifest.ledger], order="deterministic")
    return Golden(hashlib.sha256(content).hexdigest(), _releases(artifact))


def _corpora(root: Path) -> Iterator[tuple[str, Artifact]]:
    for path, options in _CLEAN_OPTIONS.items():
        if path.exists():
            files = resolve_inputs(root, str(path), corpora=False)
            yield path.name, clean_stage.clean(root, "text", files, CleanOptions(**options), SilentProgress()).artifact


def _tokenizers(root: Path) -> Iterator[tuple[str, Artifact]]:
    texts = tokenizers_stage.find_sentences(root, [str(_NOVEL)])
    for kind, size in _KINDS.items():
        yield (
            f"{_NOVEL.name} without its byte order mark, {kind}",
            tokenizers_stage.train(root, kind, texts, kind, size).artifact,
        )


def _tokens(root: Path) -> Iterator[tuple[str, Artifact]]:
    ready: list[tuple[str, tokenizers.Tokenizer]] = []
    if SHARED.is_dir():
        ready.append(("r50k_base", tokenizers.find(root, "r50k_base", "tiktoken")[0]))
    for path in (_NOVEL, _ENGLISH):
        inputs = TokenizeInputs(tuple(resolve_inputs(root, str(path), corpora=False)), ())
        text = b"".join(compression.read_blocks(path)).decode()
        letters = Characters("".join(sorted({*text})), "letters")
        for name, tokenizer in (("its-letters", letters), *ready):
            options, progress = TokenizeOptions(val_fraction=0.1), SilentProgress()
            built = tokens_stage.tokenize(root, name, inputs, tokenizer, None, options, progress, jobs=1)
            yield f"{path.name}, {name}", built.artifact


def _losses(root: Path) -> Iterator[tuple[str, Golden]]:
    """Yield the validation losses of small trainings, in nats: weights differ in their last bits between processors."""
    tokens = counting.build(root).artifact
    for preset, settings in _TRAININGS.items():
        settings = {"precision": "fp32", "evaluations": 1, "seed": 1} | settings
        plan = plans.make_plan(tokens, preset, settings=settings)
        run = training.train(root, plan, device="cpu", resume=False, report=lambda line: None).artifact
        yield f"counting, {preset}", Golden(f"{read_result(run.path).val_loss:.4f}", _releases(run))


def _releases(artifact: Artifact) -> dict[str, str]:
    """Return the versions of the libraries, without the build: torch 2.13.0+cpu is 2.13.0."""
    return {name: version.partition("+")[0] for name, version in artifact.manifest.libraries.items()}


def _is_same(old: Golden, new: Golden) -> bool:
    if len(old.digest) == 64:
        return old.digest == new.digest
    return abs(float(old.digest) - float(new.digest)) <= _MAX_DIFFERENCE


def source_digests() -> dict[str, str]:
    """Return the sha256 of all source files that decide bytes, and "" for the others in their folders, by path."""
    digests: dict[str, str] = {}
    for _, stage_code in STAGES.values():
        for path in stage_code.files({}):
            if (code.PACKAGES / path).exists():
                digests[path] = code.digest_of(path) if stage_code.decides(path) else digests.get(path, "")
    return dict(sorted(digests.items()))


def problems(stage: str, old: Released, golden: dict[str, Golden]) -> Iterator[str]:
    """Describe why the code of a stage cannot be released as it is."""
    schema, stage_code = STAGES[stage]
    if old.schemas.get(stage) != schema:
        return
    is_edited = any(code.digest_of(path) != old.files.get(path) for path in stage_code.files(old.files))
    for text in golden.keys() & old.golden.get(stage, {}).keys():
        before, now = old.golden[stage][text], golden[text]
        if before.libraries != now.libraries:
            if is_edited:
                yield f"{stage}: recorded with {before.libraries}, here {now.libraries}: install constraints.txt first"
        elif not _is_same(before, now):
            yield f"{stage} makes other bytes of {text}: raise its SCHEMA (now {schema})"


def main() -> int:
    """Write the table. Returns 1 and writes nothing if a stage makes other bytes under the same SCHEMA."""
    old = code.read_released()
    golden = {stage: golden_of(stage) for stage in STAGES}
    if lines := sorted(line for stage in STAGES for line in problems(stage, old, golden[stage])):
        print("\n".join(lines), file=sys.stderr)
        return 1
    schemas = {stage: schema for stage, (schema, _) in STAGES.items()}
    for stage, texts in golden.items():  # texts that are not present here stay as recorded
        if old.schemas.get(stage) == schemas[stage]:
            golden[stage] = old.golden.get(stage, {}) | texts
    content = msgspec.json.encode(Released(schemas, golden, source_digests()), order="deterministic")
    RELEASED.write_bytes(msgspec.json.format(content, indent=2) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
