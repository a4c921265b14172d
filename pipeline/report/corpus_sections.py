"""The chapter of a report about a corpus."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pipeline.clean.options import CleanOptions
from pipeline.report import charts, corpus
from pipeline.report.bins import histogram
from pipeline.report.corpus import CorpusNumbers
from pipeline.report.languages import Language
from pipeline.report.replay import changes_of_rules
from pipeline.report.section import Block, Cell, Chapter, Facts, Figure, Note, Pairs, Passage, Section, Span, Table
from pipeline.store.artifact import Artifact

_LEAST_SHOWN = 0.0005  # share of Han
_MAX_BRANCHES = 7  # of a flow; the smaller ones are summed up
_COMMONEST, _RAREST, _MARKS, _FILES = 20, 90, 16, 25  # rows of tables, characters of a passage
_CHINESE = {
    **{"Han": "汉字", "Latin": "拉丁字母", "Hiragana": "平假名", "Katakana": "片假名", "Hangul": "谚文"},
    **{"Cyrillic": "西里尔字母", "Greek": "希腊字母", "digits": "数字", "punctuation": "标点", "symbols": "符号"},
    **{"spaces": "空白与换行", "marks": "附加符号", "other": "其他"},
}


def chapter(artifact: Artifact, say: Language) -> Chapter:
    """Return the chapter of a corpus. Raises BadData if its report is damaged."""
    numbers, counts = corpus.collect(artifact), artifact.manifest.counts
    han = numbers.report["characters"]["han"] / max(numbers.characters, 1)
    facts = [
        (say("documents", "文档"), counts.get("documents")),
        (say("sentences", "句子"), counts.get("sentences")),
        (say("characters", "字符"), counts.get("characters")),
        (say("distinct characters", "字符种数"), len(numbers.histogram)),
        *([(say("Han", "汉字占比"), f"{100 * han:.1f} %")] if han > _LEAST_SHOWN else []),
        (say("bytes of input", "输入字节"), counts.get("input_bytes")),
    ]
    sections = [
        _flow(artifact, say),
        _warnings(numbers, say),
        _lengths(numbers, counts, say),
        _characters(numbers, say),
        _scripts(numbers, say),
        _marks(numbers, say),
        _rules(artifact, numbers, say),
        _rejects(artifact, numbers, say),
        _headings(numbers, say),
        _files(numbers, say),
        _options(artifact, say),
    ]
    title = say(f"Corpus {artifact.manifest.name}", f"语料 {artifact.manifest.name}")
    return Chapter(title, artifact.ref, facts, [section for section in sections if section.blocks])


def _flow(artifact: Artifact, say: Language) -> Section:
    blocks: list[Block] = []
    units = {"documents": say("documents", "文档"), "characters": say("characters", "字符")}
    for unit, name in units.items():
        tally = artifact.manifest.ledger.get(unit)
        if not tally:
            continue
        changes = {rule: -count for rule, count in tally["dropped"].items()}
        for rule, count in tally.get("added", {}).items():
            changes[rule] = changes.get(rule, 0) + count
        changes = {rule: count for rule, count in changes.items() if count}
        if not changes:
            count = tally["in"]
            all_kept = {
                "documents": say(f"No document was dropped, of {count:,}.", f"{count:,} 篇文档全部收录。"),
                "characters": say(f"No character changed, of {count:,}.", f"{count:,} 个字符均无改动。"),
            }
            blocks.append(all_kept[unit])
            continue
        start, end = (say("in", "输入"), tally["in"]), (say("out", "输出"), tally["out"])
        branches = _largest(changes, say)
        caption = say(
            f"{name.capitalize()} from the input to the corpus: what each rule or filter removed or added",
            f"{name}从输入到语料：每条规则或过滤删去、补入的数量",
        )
        rows: list[tuple[str, int]] = [
            (start[0], start[1]),
            *sorted(changes.items(), key=lambda item: (item[1], item[0])),
            (end[0], end[1]),
        ]
        table = Table((say("step", "步骤"), name), rows)
        blocks.append(Figure(charts.flow(start, branches, end, caption), caption, table, is_bare=True))
    return Section(say("From the input to the corpus", "从输入到语料"), blocks)


def _largest(changes: Mapping[str, int], say: Language) -> list[tuple[str, int]]:
    """Return the largest changes, and the sum of the others."""
    ranked = sorted(changes.items(), key=lambda item: (-abs(item[1]), item[0]))
    if len(ranked) <= _MAX_BRANCHES:
        return ranked
    others = ranked[_MAX_BRANCHES - 1 :]
    label = say(f"{len(others)} others", f"其余 {len(others)} 项")
    return [*ranked[: _MAX_BRANCHES - 1], (label, sum(count for _, count in others))]


def _warnings(numbers: CorpusNumbers, say: Language) -> Section:
    notes = [Note(text) for text in numbers.report.get("warnings", ())]
    return Section(say("Warnings", "警告"), notes)


def _lengths(numbers: CorpusNumbers, counts: Mapping[str, Any], say: Language) -> Section:
    blocks: list[Block] = []
    series = (
        (numbers.documents, say("documents", "文档"), say("Documents by length in characters", "文档长度分布（字符）")),
        (numbers.sentences, say("sentences", "句子"), say("Sentences by length in characters", "句子长度分布（字符）")),
    )
    rows: list[Sequence[Cell]] = [(name, *bins.percentiles.values()) for bins, name, _ in series if bins]
    if rows:
        percentiles = (say("shortest", "最短"), "5 %", say("median", "中位数"), "95 %", say("longest", "最长"))
        blocks.append(Table((say("length in characters", "长度（字符）"), *percentiles), rows))
    if numbers.measured < counts.get("documents", 0):
        blocks.append(
            say(
                f"Lengths of documents are those of a sample of {numbers.measured:,} documents (seed {corpus.SEED}).",
                f"文档长度来自抽取的 {numbers.measured:,} 篇文档（种子 {corpus.SEED}）。",
            )
        )
    blocks += [histogram(bins, caption, say) for bins, _, caption in series if bins]
    return Section(say("Lengths", "长度"), blocks)


def _characters(numbers: CorpusNumbers, say: Language) -> Section:
    frequencies, total = numbers.histogram, max(numbers.characters, 1)
    once = sum(count == 1 for count in frequencies.values())
    half, most = (corpus.kinds_that_cover(frequencies, share) for share in (0.5, 0.99))
    introduction = say(
        f"{half:,} of the {len(frequencies):,} distinct characters make up half of the text, {most:,} make up 99 % of "
        f"it; {once:,} occur once.",
        f"{len(frequencies):,} 个不同字符中，{half:,} 个就占全文的一半，{most:,} 个占 99 %；{once:,} 个只出现一次。",
    )
    rows = [
        (character, f"U+{ord(character):04X}", count, f"{1000 * count / total:.2f}")
        for character, count in corpus.commonest(frequencies, _COMMONEST)
    ]
    columns = (say("character", "字符"), say("code point", "码位"), say("count", "次数"), say("per 1,000", "每千字符"))
    rare = corpus.rarest(frequencies, min(_RAREST, len(frequencies) // 2))
    limit = max((count for _, count in rare), default=0)
    is_once = limit == 1
    caption = say(
        f"The {len(rare)} rarest characters, each of which occurs {'once' if is_once else f'at most {limit:,} times'}",
        f"最罕见的 {len(rare)} 个字符，{'都只出现一次' if is_once else f'每个最多出现 {limit:,} 次'}",
    )
    spans = [Span(f"{character}\u2002", "", _describe(character, count)) for character, count in rare]
    commonest = Table(columns, rows, say("The commonest characters", "最常见的字符"), bars=2, code=(1,))
    return Section(say("Characters", "字符"), [introduction, commonest, Passage(spans, caption)])


def _describe(character: str, count: int) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}: {count:,}"


def _scripts(numbers: CorpusNumbers, say: Language) -> Section:
    total = max(numbers.characters, 1)
    rows = [
        (_script(script.name, say), script.characters, charts.percent(script.characters, total), script.kinds)
        for script in numbers.scripts
    ]
    columns = (say("script", "文字"), say("characters", "字符数"), say("share", "占比"), say("distinct", "种数"))
    return Section(say("Scripts", "文字种类"), [Table(columns, rows, bars=1)])


def _script(name: str, say: Language) -> str:
    return say(name, _CHINESE.get(name, name))


def _marks(numbers: CorpusNumbers, say: Language) -> Section:
    total = max(numbers.characters, 1)
    rows = [(mark, count, f"{1000 * count / total:.2f}") for mark, count in numbers.marks[:_MARKS]]
    columns = (say("mark", "标点"), say("count", "次数"), say("per 1,000 characters", "每千字符"))
    count = sum(count for _, count in numbers.marks)
    text = say(
        f"{count:,} punctuation marks of {len(numbers.marks)} kinds: {1000 * count / total:.1f} per 1,000 characters.",
        f"共 {count:,} 个标点，{len(numbers.marks)} 种：每千字符 {1000 * count / total:.1f} 个。",
    )
    return Section(say("Punctuation", "标点"), [text, Table(columns, rows, bars=1)] if rows else [])


def _rules(artifact: Artifact, numbers: CorpusNumbers, say: Language) -> Section:
    active = [rule for rule in numbers.report["rules"] if rule["removed"] or rule["added"] or rule["seen"]]
    if not active:
        return Section(say("Rules", "清洗规则"), [say("No rule changed a character.", "没有规则改动过字符。")])
    columns = (
        say("rule", "规则"),
        say("removed", "删去"),
        say("added", "补入"),
        say("most frequent cases", "最常见的情形"),
    )
    rows = [
        (rule["name"], -rule["removed"] or None, rule["added"] or None, _cases(rule["seen"]) or None) for rule in active
    ]
    blocks: list[Block] = [Table(columns, rows, say("Characters that each rule changed", "各规则改动的字符数"))]
    changes, is_unchanged = changes_of_rules(artifact)
    if not is_unchanged:
        missing = say(
            "There are no examples: the source files are not where they were, have changed, or are texts of more than "
            "64 MiB.",
            "没有示例：源文件已移动或已更改，或者是大于 64 MiB 的文本。",
        )
        return Section(say("Rules", "清洗规则"), [*blocks, missing])
    names = [rule["name"] for rule in active if rule["name"] in changes]
    if names:
        blocks.append(
            say(
                "Examples from the beginning of the sources; ‖ is the border of two documents.",
                "示例取自源文件开头；‖ 表示两篇文档的分界。",
            )
        )
    for name in names:
        pairs = [(_shown(before), _shown(after)) for before, after in changes[name]]
        blocks.append(Pairs(name, pairs))
    return Section(say("Rules", "清洗规则"), blocks)


def _shown(excerpt: str) -> str:
    """Return an excerpt of a page with a sign for NUL, which separates documents."""
    return excerpt.replace("\\x00", "‖")


def _cases(cases: Mapping[str, int]) -> str:
    ranked = sorted(cases.items(), key=lambda item: (-item[1], item[0]))[:3]
    return "; ".join(f"{case} {count:,}" for case, count in ranked)


def _rejects(artifact: Artifact, numbers: CorpusNumbers, say: Language) -> Section:
    dropped = artifact.manifest.ledger.get("documents", {}).get("dropped", {})
    blocks: list[Block] = []
    if dropped:
        rows = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
        columns = (say("reason", "原因"), say("documents", "文档"))
        blocks.append(Table(columns, rows, say("Dropped documents by reason", "各原因剔除的文档"), bars=1))
    for reason, examples in sorted(numbers.rejects.items()):
        columns = (say("file and line", "文件与行"), say("beginning", "开头"))
        blocks.append(Table(columns, examples, say(f"Examples: {reason}", f"示例：{reason}"), code=(0,)))
    report = numbers.report
    facts = [(say("documents equal to an earlier one", "与前面的文档相同"), report["documents"]["duplicates"])]
    names = {
        "compared": say("pairs compared for near duplicates", "为查找近似重复而比对的文档对"),
        "similar": say("similar pairs", "相似的文档对"),
        "uncompared": say("comparisons left out", "未比对的文档对"),
    }
    facts += [(names.get(name, name), count) for name, count in report.get("near_pairs", {}).items()]
    blocks.append(Facts(facts))
    for reason, entries in sorted(report.get("examples", {}).items()):
        rows = [(f"{name}: {value}",) for entry in entries for name, value in sorted(entry.items())]
        blocks.append(Table((reason,), rows))
    return Section(say("Dropped documents and duplicates", "剔除的文档与重复"), blocks)


def _headings(numbers: CorpusNumbers, say: Language) -> Section:
    headings = numbers.report["headings"]
    if not headings["patterns"]:
        return Section(say("Headings", "章回标题"), [])
    rows = sorted(headings["patterns"].items(), key=lambda item: (-item[1], item[0]))
    columns = (say("pattern", "样式"), say("headings", "标题数"))
    series = [
        (entry["pattern"], entry["first"], entry["last"], _listed(entry["missing"]), _listed(entry["repeated"]))
        for entry in headings["series"]
    ]
    names = (
        say("series", "序列"),
        say("first", "首号"),
        say("last", "末号"),
        say("missing", "缺号"),
        say("repeated", "重号"),
    )
    blocks: list[Block] = [Table(columns, rows, bars=1)]
    if series:
        blocks.append(Table(names, series[:_FILES], say("Numbers of the chapters", "章回编号")))
    return Section(say("Headings", "章回标题"), blocks)


def _listed(numbers: list[Any]) -> str | None:
    return ", ".join(map(str, numbers)) or None


def _files(numbers: CorpusNumbers, say: Language) -> Section:
    files = numbers.report["files"]
    ranked = sorted(files, key=lambda file: (-file["bytes"], file["name"]))[:_FILES]
    rows = [
        (file["name"], file["encoding"], file["profile"], file["bytes"], file["documents"], file["characters"])
        for file in ranked
    ]
    columns = (
        *(say("file", "文件"), say("encoding", "编码"), say("profile", "规则集")),
        *(say("bytes", "字节"), say("documents", "文档"), say("characters", "字符")),
    )
    caption = say(f"The largest {len(rows)} of {len(files):,} files", f"{len(files):,} 个文件中最大的 {len(rows)} 个")
    return Section(say("Source files", "源文件"), [Table(columns, rows, caption if len(files) > len(rows) else "")])


def _options(artifact: Artifact, say: Language) -> Section:
    defaults = msgspec.json.decode(msgspec.json.encode(CleanOptions().identity()))
    options = artifact.manifest.options
    rows = [
        (name, str(value) if not isinstance(value, list) else ", ".join(map(str, value)))
        for name, value in sorted(options.items())
        if name not in ("files", "stage", "titles", "members") and value != defaults.get(name)
    ]
    text = say("All cleaning options have their default values.", "所有清洗选项都是默认值。")
    return Section(say("Options", "选项"), [Facts(rows) if rows else text])
