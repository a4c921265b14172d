"""The first chapter of a report about a chain: one row for each stage, from the source to the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from pipeline.errors import BadData
from pipeline.report.languages import Language
from pipeline.report.section import Cell, Chapter, Section, Table
from pipeline.runtime.regular_file import read_regular
from pipeline.runtime.terminal import counted
from pipeline.store.artifact import Artifact

_Row = tuple[str, str, str]


class _RunResult(msgspec.Struct):
    """The fields of a run's result.json that are shown."""

    bits_per_char: float | None = None
    best_bits_per_char: float | None = None


def chapter(artifacts: Sequence[Artifact], say: Language) -> Chapter:
    """Return the chapter of a chain, whose artifacts are in the order of their stages."""
    rows: list[Sequence[Cell]] = [row for entry in artifacts for row in _rows(entry, say)]
    columns = (say("stage", "阶段"), say("contents", "内容"), say("artifact", "产物"))
    sections = [Section(say("From source to model", "从来源到模型"), [Table(columns, rows, code=(2,))])]
    return Chapter(say("Overview", "概览"), "", [], sections)


def _rows(entry: Artifact, say: Language) -> Iterator[_Row]:
    counts, inputs = entry.manifest.counts, entry.manifest.inputs
    match entry.manifest.kind:
        case "corpora":
            files = sum(source.role == "raw" for source in inputs)
            size = counts.get("input_bytes", 0)
            text = say(f"{counted(files, 'files')}, {size:,} bytes", f"{files:,} 个文件，{size:,} 字节")
            yield say("source", "来源"), text, "–"
            documents, characters = counts.get("documents", 0), counts.get("characters", 0)
            text = say(
                f"{counted(documents, 'documents')}, {counted(characters, 'characters')}",
                f"{documents:,} 篇文档，{characters:,} 个字符",
            )
            yield "clean", text, entry.ref
        case "tokens":
            ids = counts.get("vocab_size", 0)
            trained = next(
                (source.name for source in inputs if source.role == "tokenizer"), counts.get("tokenizer", "")
            )
            yield "train-tokenizer", say(f"{ids:,} ids", f"词表大小 {ids:,}"), trained
            train, val = counts.get("train_tokens", 0), counts.get("val_tokens", 0)
            text = say(
                f"{train:,} training and {val:,} validation tokens", f"训练集 {train:,} 个词元，验证集 {val:,} 个"
            )
            yield "tokenize", text, entry.ref
        case "runs":
            steps, parameters = counts.get("steps", 0), counts.get("parameters", 0)
            length = say(counted(steps, "steps"), f"{steps:,} 步") if steps else say("imported", "导入")
            text = length + say(f", {parameters:,} parameters", f"，{parameters:,} 个参数")
            yield "train", text + _score(entry, say), entry.ref


def _score(run: Artifact, say: Language) -> str:
    """Return the best bits per character of a run, "" if it has none."""
    try:
        result = msgspec.json.decode(read_regular(run.file("result.json")), type=_RunResult)
    except (OSError, BadData, msgspec.DecodeError, UnicodeDecodeError):
        return ""
    bits = result.bits_per_char if result.best_bits_per_char is None else result.best_bits_per_char
    return "" if bits is None else say(f", {bits:.3f} bits per character", f"，每字符 {bits:.3f} 比特")
