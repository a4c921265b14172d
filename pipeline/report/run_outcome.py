"""Sections of a report about what was planned for a run and what happened, its configuration, and its command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from pipeline.report.languages import Language
from pipeline.report.run import RunNumbers, duration
from pipeline.report.section import Block, Cell, Facts, Note, Pre, Section, Table
from pipeline.runtime.terminal import counted

_MAX_LINE = 72  # characters of a command in one line


def sections(numbers: RunNumbers, say: Language) -> list[Section]:
    """Return the sections about plan and outcome, configuration and reproduction."""
    reproduce = Section(say("Reproduce", "复现"), _reproduce(numbers, say))
    return [_plan(numbers, say), _configuration(numbers, say), reproduce]


def tuning(numbers: RunNumbers, say: Language) -> Section:
    """Compare a tuned run with the one that it starts from: on held-out answers or pairs, and on that one's text."""
    title, values = say("Tuning", "微调"), numbers.result.get("tuning") or {}
    names = {
        "answers": say("bits per character of held-out answers", "留作验证的回答，每字符比特数"),
        "accuracy": say("share of held-out pairs with a margin above 0", "间隔大于 0 的验证集回答对所占的比例"),
        "margin": say("margin of held-out pairs", "验证集回答对的间隔（margin）"),
        "kl": say("KL from the reference, in nats per token", "与参考模型的 KL 散度（每词元的 nat 数）"),
        "base": say("bits per character of the base model's validation text", "原模型的验证文本，每字符比特数"),
    }
    rows: list[tuple[Cell, ...]] = [
        (text, values.get(f"{name}_before"), values.get(f"{name}_after"))
        for name, text in names.items()
        if f"{name}_after" in values
    ]
    blocks: list[Block] = [Table(("", say("before", "微调前"), say("after", "微调后")), rows)] if rows else []
    note = str(numbers.result.get("note") or "")
    return Section(title, blocks + [Note(note)] * bool(note))


def _plan(numbers: RunNumbers, say: Language) -> Section:
    """Compare what the program expected before the first step with what happened."""
    title, result, train = say("Plan and outcome", "计划与结果"), numbers.result, numbers.config.get("train")
    if not numbers.rows or not isinstance(train, dict):
        return Section(title, [])
    plans = [event for event in numbers.events if event["event"] == "plan"]
    step_seconds = float(plans[0].get("seconds_per_step", 0.0)) if plans else 0.0
    step_tokens = train["batch_size"] * numbers.config["model"]["block_size"]
    minutes, steps = float(train["minutes"]), int(train["steps"])
    if minutes:
        steps = round(60 * minutes / step_seconds) if step_seconds else 0
    memory = max(numbers.column("memory_mb")[1], default=None)
    rows: list[tuple[Cell, Cell, Cell]] = [
        (say("steps", "步数"), steps or None, result["steps"]),
        (
            say("training time", "训练时间"),
            duration(60 * minutes if minutes else steps * step_seconds) if step_seconds or minutes else None,
            duration(result["seconds"]),
        ),
        (
            say("tokens per second", "每秒词元数"),
            round(step_tokens / step_seconds) if step_seconds else None,
            round(result["tokens_per_second"]),
        ),
        (say("tokens", "词元数"), steps * step_tokens or None, result["tokens"]),
        (
            say("memory in MB", "内存（MB）"),
            round(plans[0].get("bytes", 0) / 1e6) if plans else None,
            None if memory is None else round(memory),
        ),
        (say("evaluations", "评估次数"), train["evaluations"], max(len(numbers.column("val_loss")[0]) - 1, 0)),
    ]
    columns = ("", say("planned", "计划"), say("actual", "实际"))
    blocks: list[Block] = [Table(columns, rows)]
    if result.get("device") == "cpu" and memory is not None:
        blocks.append(
            say(
                "On a CPU the memory is that of the process, with Python and its libraries; the plan counts tensors.",
                "在 CPU 上，内存为整个进程所用，含 Python 与各库；计划只计张量。",
            )
        )
    blocks += [Note(text) for text in _incidents(numbers, plans, say)]
    return Section(title, blocks)


def _incidents(numbers: RunNumbers, plans: Sequence[dict[str, Any]], say: Language) -> list[str]:
    """Describe what went otherwise than planned: an early end, skipped steps, rollbacks, resumes."""
    kinds = [event["event"] for event in numbers.events]
    skipped, rollbacks = kinds.count("passed over"), kinds.count("rolled back")
    lines: list[str] = []
    if ended := str(numbers.result.get("ended_early") or ""):
        lines.append(say(f"It ended early: {ended}.", f"提前结束：{ended}。"))
    if "ended" in numbers.artifact.manifest.options:
        lines.append(say("A signal ended it early.", "收到信号，提前结束。"))
    if skipped:
        lines.append(
            say(
                f"{counted(skipped, 'steps')} skipped, because a number was not finite.",
                f"{skipped:,} 步出现非有限数值，已跳过。",
            )
        )
    if rollbacks:
        lines.append(
            say(f"It went back to a checkpoint {counted(rollbacks, 'times')}.", f"退回到检查点 {rollbacks:,} 次。")
        )
    if len(plans) > 1:
        times = counted(len(plans) - 1, "times")
        lines.append(say(f"It was interrupted and resumed {times}.", f"中断后恢复训练 {len(plans) - 1:,} 次。"))
    return lines


def _configuration(numbers: RunNumbers, say: Language) -> Section:
    config, title = numbers.config, say("Configuration", "配置")
    names = {"model": say("network", "网络"), "train": say("training", "训练")}
    rows: list[tuple[str, Cell]] = [(say("preset", "预设"), str(config.get("preset") or "–"))]
    rows.append((say("tokens", "词元数据"), input_of(numbers, "tokens") or "–"))
    if parent := input_of(numbers, "parent"):
        rows.append((say("starts from the run", "初始权重来自"), parent))
    rows.append((say("tokenizer", "分词器"), f"{numbers.tokenizer.name}, {numbers.tokenizer.vocab_size:,}"))
    rows.append((say("device", "设备"), str(numbers.result.get("device") or "–")))
    if isinstance(changed := config.get("settings"), dict):
        pairs = "  ".join(f"{key}={setting_text(value)}" for key, value in changed.items())
        rows.append((say("differs from the preset in", "与预设不同的设置"), pairs or "–"))
    blocks: list[Block] = [Facts(rows)]
    if not numbers.rows:
        del names["train"]  # an imported run, which these numbers did not train
    for part, name in names.items():
        values = config.get(part) or {}
        settings = [(key, setting_text(value)) for key, value in values.items() if value]
        caption = say(f"All settings of the {name} that are not off or 0", f"{name}的全部设置（关闭或为 0 的不列）")
        table = Table((say("setting", "设置"), say("value", "值")), settings, caption, code=(0, 1), is_folded=True)
        blocks += [table] if settings else []
    return Section(title, blocks)


def setting_text(value: Any) -> str:
    """Return a value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def input_of(numbers: RunNumbers, role: str) -> str:
    """Return the "tokens" or the "parent" run that a run was made from, as name/key; "" if it has none."""
    names = (entry.name for entry in numbers.artifact.manifest.inputs if entry.role == role)
    return next(names, "").partition("/")[2]


def _reproduce(numbers: RunNumbers, say: Language) -> list[Block]:
    """Return the command that trains this run again."""
    config, manifest = numbers.config, numbers.artifact.manifest
    tokens, settings = input_of(numbers, "tokens"), config.get("settings")
    if not tokens:
        return []
    parent = input_of(numbers, "parent")
    train = config["train"]
    length = ["--minutes", f"{train['minutes']:g}"] if train["minutes"] else ["--steps", str(train["steps"])]
    options = [["--tokens", tokens]]
    blocks: list[Block] = []
    if parent and not manifest.options.get("afresh"):
        options += [["--continue", parent], length]
    else:
        preset = [] if numbers.task else [["--preset", str(config.get("preset", ""))]]  # a tuning takes none
        options += [*preset, ["--name", manifest.name], length]
        options += [["--from", parent]] if parent else []
        if isinstance(settings, dict) and (numbers.task or not parent):
            pairs = {key: value for key, value in settings.items() if key not in ("steps", "minutes")}
            options += [["--set", f"{key}={setting_text(value)}"] for key, value in pairs.items()]
        else:
            blocks.append(
                Note(
                    say(
                        "Other settings than those of the preset must be added by --set; the configuration lists all.",
                        "其他与预设不同的设置要用 --set 加上，全部设置见“配置”。",
                    )
                )
            )
    prompts = [str(event.get("prompt", "")) for event in numbers.events if event["event"] == "plan"]
    if prompts and prompts[-1]:
        options.append(["--prompt", prompts[-1]])
    parts = ["inkstone train", *map(shlex.join, options)]
    one_line = " ".join(parts)
    command = one_line if len(one_line) <= _MAX_LINE else " \\\n  ".join(parts)
    caption = say("With the same tokens, this command trains the run again", "词元数据相同时，用这条命令可以重新训练")
    return [Pre(command, caption), *blocks]
