"""The chapter of a report about several runs: their curves over each other, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.report import charts
from pipeline.report.charts import MAX_SERIES, Series
from pipeline.report.languages import Language
from pipeline.report.run import RunNumbers, duration, whole
from pipeline.report.run_outcome import input_of, setting_text
from pipeline.report.section import Block, Cell, Chapter, Figure, Note, Section, Table


def chapter(runs: Sequence[RunNumbers], say: Language) -> Chapter:
    """Return the chapter that compares two or more runs."""
    names = labels(runs)
    sections = [_results(runs, names, say), _curves(runs, names, say), _differences(runs, names, say)]
    return Chapter(say("Runs compared", "训练对比"), "", [], [section for section in sections if section.blocks])


def labels(runs: Sequence[RunNumbers]) -> list[str]:
    """Return the names of runs, with the beginning of the key where a name occurs twice."""
    names = [entry.artifact.manifest.name for entry in runs]
    return [
        f"{name}/{entry.artifact.manifest.key[:6]}" if names.count(name) > 1 else name
        for name, entry in zip(names, runs, strict=True)
    ]


def _results(runs: Sequence[RunNumbers], names: Sequence[str], say: Language) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for name, numbers in zip(names, runs, strict=True):
        result, score = numbers.result, numbers.score
        rows.append(
            (
                name,
                None if score is None else round(score, 4),
                int(result["parameters"]),
                int(result["steps"]) or None,  # of an imported run
                duration(result["seconds"]) if result.get("seconds") else None,
                round(result.get("tokens_per_second") or 0) or None,
            )
        )
    columns = (
        *(say("run", "训练"), say("bits per character", "每字符比特数"), say("parameters", "参数量")),
        *(say("steps", "步数"), say("time", "时间"), say("tokens per second", "每秒词元数")),
    )
    blocks: list[Block] = [Table(columns, rows)]
    if len({input_of(numbers, "tokens") for numbers in runs}) > 1:
        blocks.append(
            Note(
                say(
                    "These runs were trained on different tokens: their bits per character compare only if the "
                    "validation text is the same.",
                    "这些训练所用的词元数据不同：只有验证文本相同，每字符比特才可比。",
                )
            )
        )
    return Section(say("Results", "结果"), blocks)


def _curves(runs: Sequence[RunNumbers], names: Sequence[str], say: Language) -> Section:
    """Return the bits per character of all runs over steps, tokens and seconds."""
    axes = {
        "step": say("steps", "步数"),
        "tokens": say("trained tokens", "已训练的词元数"),
        "seconds": say("seconds of training", "训练秒数"),
    }
    bits = say("bits per character", "每字符比特数")
    blocks: list[Block] = []
    for axis, unit in axes.items():
        caption = say(f"Bits per character over {unit}", f"每字符比特数随{unit}的变化")
        points = [
            [(row[axis] or 0.0, value) for row in numbers.rows if (value := row.get("bits_per_char")) is not None]
            for numbers in runs
        ]
        present = [(name, line) for name, line in zip(names, points, strict=True) if line]
        if not present:
            continue
        series = [Series(name, [x for x, _ in line], [y for _, y in line]) for name, line in present[:MAX_SERIES]]
        rows = [(name, whole(x), y) for name, line in present for x, y in line]
        table = Table((say("run", "训练"), unit, bits), rows)
        blocks.append(Figure(charts.lines(series, caption), caption, table, series))
    if len(runs) > MAX_SERIES and blocks:
        more = say(
            f"The charts show the first {MAX_SERIES} runs, the tables all.",
            f"图中只画前 {MAX_SERIES} 个，表中全部列出。",
        )
        blocks.append(more)
    return Section(say("Curves", "曲线"), blocks)


def _differences(runs: Sequence[RunNumbers], names: Sequence[str], say: Language) -> Section:
    """Return the settings and inputs that are not the same in all runs."""
    fields = [settings_of(numbers) for numbers in runs]
    keys = list(dict.fromkeys(key for values in fields for key in values))
    rows = [
        (key, *(values.get(key) for values in fields))
        for key in keys
        if len({values.get(key) for values in fields}) > 1
    ]
    title = say("What differs", "不同之处")
    if not rows:
        return Section(title, [say("Configuration and data are the same.", "配置与数据均相同。")])
    table = Table((say("setting", "设置"), *names), rows, code=range(len(names) + 1))
    return Section(title, [table])


def settings_of(numbers: RunNumbers) -> dict[str, str]:
    """Return the configuration, the tokenizer, and the artifacts that a run was made from, as texts by name."""
    config = numbers.config
    values: dict[str, Any] = {"preset": config.get("preset")}
    for part in ("model", "train") if numbers.rows else ("model",):  # an imported run was not trained with these
        values |= {key: value for key, value in (config.get(part) or {}).items() if value}
    values["tokenizer"] = numbers.tokenizer.fingerprint
    values |= {entry.role: entry.name for entry in numbers.artifact.manifest.inputs}
    values["device"] = numbers.result.get("device")
    return {key: setting_text(value) for key, value in values.items() if value not in (None, "")}
