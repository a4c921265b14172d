"""The chapter of a report about a run."""

from __future__ import annotations

import numpy as np

from pipeline.report import charts, run, run_losses, run_outcome
from pipeline.report.charts import Scale, Series
from pipeline.report.languages import Language
from pipeline.report.run import RunNumbers, duration, whole
from pipeline.report.section import Block, Cell, Chapter, Facts, Figure, Note, Section, Table
from pipeline.store.artifact import Artifact
from pipeline.tokens.split import FEWEST_CHARACTERS

_SMALL = 110  # pixels of the charts of learning rate, gradient norm, speed and memory
_SAMPLES = 8
_LEVELS = 4  # baselines in the chart of the loss


def chapter(artifact: Artifact, say: Language) -> Chapter:
    """Return the chapter of a run. Raises BadData if one of its files is damaged."""
    numbers = run.collect(artifact)
    result = numbers.result
    facts: list[tuple[str, Cell]] = [
        (say("bits per character", "每字符比特数"), _rounded(numbers.score)),
        (say("parameters", "参数量"), result["parameters"]),
    ]
    if numbers.rows:  # an imported run has no steps
        facts += [
            (say("steps", "步数"), result["steps"]),
            (say("epochs", "轮数"), _rounded(result.get("epochs"), 2)),
            (say("training time", "训练时间"), duration(result.get("seconds") or 0.0)),
            (say("tokens per second", "每秒词元数"), round(result.get("tokens_per_second") or 0)),
        ]
    sections = [
        _loss(numbers, say),
        run_outcome.tuning(numbers, say),
        _baselines(numbers, say),
        _samples(numbers, say),
        *run_losses.sections(numbers, say),
        _course(numbers, say),
        *run_outcome.sections(numbers, say),
    ]
    title = say(f"Run {artifact.manifest.name}", f"训练 {artifact.manifest.name}")
    present = [section for section in sections if section.blocks]
    return Chapter(title, artifact.ref, facts, present, verdict(numbers, say))


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(float(value), digits)


def name_of_baseline(name: str, say: Language) -> str:
    names = {
        "uniform": say("uniform", "均匀分布"),
        "unigram": say("unigram", "一元模型"),
        "bigram": say("bigram", "二元模型"),
        "ngram": say("counting n-grams", "字符 n 元模型"),
    }
    return names.get(name, name)


def verdict(numbers: RunNumbers, say: Language) -> str:
    """Compare the run with the best baseline that it beats, in one sentence; "" if nothing was evaluated."""
    score, baselines = numbers.score, numbers.result.get("baselines") or {}
    if score is None:
        return ""
    if numbers.task:
        text = say(f"{score:.3f} bits per character of held-out answers", f"留作验证的回答，每字符 {score:.3f} 比特")
    else:
        text = say(
            f"{score:.3f} bits per character of text that was not trained on",
            f"在未参与训练的文本上，每字符 {score:.3f} 比特",
        )
    if 0 < (characters := numbers.result.get("val_characters", 0)) < FEWEST_CHARACTERS:
        return text + say(
            f": these are only {characters:,} characters, too few to compare by.",
            f"，但只有 {characters:,} 个字符，太少，不足以比较。",
        )
    beaten = [name for name, bits in baselines.items() if score < bits]
    if not beaten:
        return text
    best = min(beaten, key=baselines.__getitem__)
    name = name_of_baseline(best, say)
    return text + say(f": better than {name} ({baselines[best]:.3f}).", f"，优于{name}（{baselines[best]:.3f}）。")


def _conversion(numbers: RunNumbers) -> tuple[float, float] | None:
    """Return the slope and offset that convert nats per token to bits per character; None without two evaluations."""
    _, nats = numbers.column("val_loss")
    _, bits = numbers.column("bits_per_char")
    low, high = (function(range(len(nats)), key=nats.__getitem__, default=0) for function in (min, max))
    if len(nats) != len(bits) or low == high or nats[low] == nats[high]:
        return None
    slope = (bits[high] - bits[low]) / (nats[high] - nats[low])
    return (slope, bits[low] - slope * nats[low]) if slope > 0 else None


def _scales(numbers: RunNumbers, say: Language) -> list[Scale]:
    """Return the scales of steps, tokens and time below a chart."""

    def interpolate(column: str, step: float) -> float:
        steps, values = numbers.column(column)
        return float(np.interp(step, [0.0, *steps], [0.0, *values]))

    return [
        Scale(say("step", "步"), charts.short),
        Scale(say("tokens", "词元"), lambda step: charts.short(interpolate("tokens", step))),
        Scale(say("time", "时间"), lambda step: duration(interpolate("seconds", step))),
    ]


def _loss(numbers: RunNumbers, say: Language) -> Section:
    """Return the curves of the loss, with baselines, and of bits per character and per byte."""
    title = say("Loss", "损失")
    if not numbers.rows:
        imported = say("This run was imported: it was not trained here.", "这个模型是导入的，不是在这里训练的。")
        return Section(title, [Note(imported)])
    conversion, scales = _conversion(numbers), _scales(numbers, say)
    training, validation = (
        Series(name, *numbers.column(column))
        for name, column in ((say("training", "训练"), "train_loss"), (say("validation", "验证"), "val_loss"))
    )
    levels: list[Series] = []
    if conversion:
        slope, offset = conversion
        baselines = sorted((numbers.result.get("baselines") or {}).items(), key=lambda item: item[1])[:_LEVELS]
        levels = [
            Series(name_of_baseline(name, say), [0.0], [(bits - offset) / slope], is_level=True)
            for name, bits in reversed(baselines)
        ]
    series = [entry for entry in (training, validation, *levels) if entry.xs]
    if numbers.task == "dpo":
        caption = say("Loss in nats per pair", "损失（每对回答的 nat 数）")
    else:
        caption = say("Loss in nats per token", "损失（每词元的 nat 数）")
    if conversion:
        caption += say("; on the right, bits per character", "；右轴为每字符比特数")
    right = (lambda nats: conversion[0] * nats + conversion[1]) if conversion else None
    chart = charts.lines(series, caption, right=right, scales=scales, height=260)
    blocks: list[Block] = [Figure(chart, caption, _rows_table(numbers, say), series)]
    bits = [
        Series(name, *numbers.column(column))
        for name, column in (
            (say("bits per character", "每字符比特数"), "bits_per_char"),
            (say("bits per byte", "每字节比特数"), "bits_per_byte"),
        )
    ]
    if bits[0].xs:
        caption = say("Bits per character and per byte of validation text", "验证文本的每字符比特数与每字节比特数")
        table = _columns_table(numbers, {"bits_per_char": bits[0].name, "bits_per_byte": bits[1].name}, say)
        blocks.append(Figure(charts.lines(bits, caption, scales=scales), caption, table, bits))
    elif not validation.xs:
        blocks.append(Note(say("There was no validation text.", "没有验证文本。")))
    if (numbers.config.get("model") or {}).get("ngram"):
        mixed = say(
            "The training loss is that of the network alone, the validation loss that of its mixture with n-grams.",
            "训练损失只计网络本身，验证损失为网络与 n 元计数混合后的结果。",
        )
        blocks.append(mixed)
    return Section(title, blocks)


def _rows_table(numbers: RunNumbers, say: Language) -> Table:
    columns = {
        "tokens": say("tokens", "词元"),
        "seconds": say("seconds", "秒"),
        "train_loss": say("training", "训练"),
        "val_loss": say("validation", "验证"),
        "bits_per_char": say("bits per character", "每字符比特数"),
        "bits_per_byte": say("bits per byte", "每字节比特数"),
    }
    return _columns_table(numbers, columns, say)


def _columns_table(numbers: RunNumbers, columns: dict[str, str], say: Language) -> Table:
    """Return the rows of the metrics that have one of these columns."""
    rows = [
        (whole(row["step"]), *(whole(row.get(name)) for name in columns))
        for row in numbers.rows
        if any(row.get(name) is not None for name in columns)
    ]
    return Table((say("step", "步"), *columns.values()), rows)


def _baselines(numbers: RunNumbers, say: Language) -> Section:
    baselines = numbers.result.get("baselines") or {}
    title = say("Baselines", "基线")
    if not baselines or numbers.score is None:
        return Section(title, [])
    meanings = {
        "uniform": say("every id is equally likely", "所有词元等概率"),
        "unigram": say("frequencies of the ids in training text", "训练文本中各词元的频率"),
        "bigram": say("frequencies of the pairs of ids", "相邻词元对的频率"),
        "zstd": say("the validation text compressed by zstd -19", "用 zstd -19 压缩验证文本"),
        "ngram": say(
            "up to 8 characters, as a compressor (PPM) counts them", "统计最多 8 个字符的片段，与 PPM 压缩相同"
        ),
    }
    rows = [(name_of_baseline(name, say), round(bits, 4)) for name, bits in baselines.items()]
    rows.append((say("this run", "本次训练"), round(numbers.score, 4)))
    rows.sort(key=lambda row: -row[1])
    columns = (say("model", "模型"), say("bits per character", "每字符比特数"))
    scored = say("held-out answers", "组回答") if numbers.task else say("validation text", "验证文本")
    text = say(
        f"Simple models on the same {scored}, and this run at its best step, {numbers.best_step:,}. Lower is better.",
        f"简单模型与本次训练（取最佳的第 {numbers.best_step:,} 步）在同一{scored}上的结果，越低越好。",
    )
    known = [
        f"{name_of_baseline(name, say)}{say(': ', '：')}{meanings[name]}" for name in baselines if name in meanings
    ]
    return Section(title, [text, Table(columns, rows, bars=1), say("; ", "；").join(known) + say(".", "。")])


def _samples(numbers: RunNumbers, say: Language) -> Section:
    """Return up to `_SAMPLES` evenly spaced samples, the first and the last included."""
    title, samples = say("Samples", "样例"), numbers.samples
    if not samples:
        return Section(title, [])
    last = len(samples) - 1
    indexes = sorted({round(index * last / max(min(_SAMPLES, last + 1) - 1, 1)) for index in range(_SAMPLES)})
    bits = dict(zip(*numbers.column("bits_per_char"), strict=True))
    rows: list[tuple[str, Cell]] = []
    for sample in (samples[index] for index in indexes if index <= last):
        score = bits.get(sample.step)
        step = say(f"step {sample.step:,}", f"第 {sample.step:,} 步")
        rows.append((step if score is None else f"{step} · {score:.3f}", sample.text))
    scores = say("; with the bits per character then", "，附当时的每字符比特数") if bits else ""
    text = say(
        f"How the model continued “{samples[-1].prompt}” during the training{scores}.",
        f"训练过程中模型如何续写“{samples[-1].prompt}”{scores}。",
    )
    return Section(title, [text, Facts(rows)])


def _course(numbers: RunNumbers, say: Language) -> Section:
    """Return small charts of learning rate, gradient norm, speed and memory."""
    columns = {
        "learning_rate": say("Learning rate", "学习率"),
        "gradient_norm": say("Gradient norm, mean since the row before", "梯度范数（自上一行起的平均值）"),
        "margin": say("Margin of held-out pairs", "验证集回答对的间隔（margin）"),
        "accuracy": say("Share of held-out pairs with a margin above 0", "间隔大于 0 的验证集回答对所占的比例"),
        "kl": say("KL from the reference, in nats per token", "与参考模型的 KL 散度（每词元的 nat 数）"),
        "memory_mb": say("Memory in MB", "内存（MB）"),
    }
    lines = {name: (caption, *numbers.column(name)) for name, caption in columns.items()}
    lines["speed"] = (say("Tokens per second", "每秒词元数"), *numbers.speeds())
    blocks: list[Block] = []
    for caption, steps, values in lines.values():
        if steps:
            chart = charts.lines([Series(caption, steps, values)], caption, height=_SMALL, low=0.0)
            table = Table((say("step", "步"), caption), list(zip(map(int, steps), map(whole, values), strict=True)))
            blocks.append(Figure(chart, caption, table))
    return Section(say("Course of the training", "训练过程"), blocks)
