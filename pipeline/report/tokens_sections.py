"""The chapter of a report about token arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.report import charts, tokens
from pipeline.report.bins import histogram
from pipeline.report.charts import Series
from pipeline.report.languages import Language
from pipeline.report.section import Block, Cell, Chapter, Facts, Figure, Passage, Section, Span, Table, visible
from pipeline.report.tokens import TokenNumbers, text_of
from pipeline.store.artifact import Artifact

_TINTS = 5  # of neighbouring tokens
_COMMONEST, _LONGEST, _RANKS, _UNUSED, _SETS = 15, 20, 120, 60, 30  # rows, points of a line, tokens of a passage


def chapter(artifact: Artifact, say: Language) -> Chapter:
    """Return the chapter of token arrays. Raises BadData if they are damaged."""
    numbers = tokens.collect(artifact)
    counts, used = numbers.counts, int(np.count_nonzero(numbers.total))
    facts: list[tuple[str, Cell]] = [
        (say("training tokens", "训练词元"), counts.get("train_tokens")),
        (say("validation tokens", "验证词元"), counts.get("val_tokens")),
        (say("documents", "文档"), counts.get("documents")),
        (say("ids", "词表大小"), numbers.tokenizer.vocab_size),
        (say("ids in use", "出现过的词元"), used),
        (say("characters per token", "每词元字符数"), round(_characters_per_token(numbers), 3)),
    ]
    sections = [
        _fertility(numbers, say),
        _page(numbers, say),
        _vocabulary(numbers, say),
        _lengths(numbers, say),
        _sets(numbers, say),
        _shift(numbers, say),
    ]
    title = say(f"Tokens {artifact.manifest.name}", f"词元 {artifact.manifest.name}")
    return Chapter(title, artifact.ref, facts, [section for section in sections if section.blocks])


def _characters_per_token(numbers: TokenNumbers) -> float:
    """Return the characters that a token has on average, without those tokens that end a document."""
    characters = sum(numbers.counts.get(f"{split}_characters", 0) for split in ("train", "val"))
    total = int(numbers.total.sum() - numbers.total[numbers.tokenizer.end_of_text])
    return float(characters / max(total, 1))


def _fertility(numbers: TokenNumbers, say: Language) -> Section:
    characters, size = numbers.sample
    if not characters:
        return Section("", [])
    names = {"characters": say("characters", "按字切分")}
    rows = [
        (
            names.get(entry.name, entry.name) + (say(" (in use)", "（当前）") if entry.is_own else ""),
            entry.vocab_size,
            entry.tokens,
            f"{entry.tokens / characters:.3f}",
            f"{entry.tokens / size:.3f}",
        )
        for entry in numbers.fertility
    ]
    columns = (
        *(say("tokenizer", "分词器"), say("ids", "词表大小"), say("tokens", "词元数")),
        *(say("per character", "每字符"), say("per byte", "每字节")),
    )
    text = say(
        f"Tokens of the same {characters:,} characters ({size:,} bytes) of training documents, drawn with seed "
        f"{tokens.SEED}. Fewer tokens mean shorter sequences; a larger vocabulary means more parameters.",
        f"同一份 {characters:,} 个字符（{size:,} 字节，按种子 {tokens.SEED} 从训练文档中抽取）各切成多少词元。"
        "词元越少，序列越短；词表越大，参数越多。",
    )
    return Section(say("Fertility", "分词效率"), [text, Table(columns, rows, bars=2)])


def _page(numbers: TokenNumbers, say: Language) -> Section:
    if not numbers.page:
        return Section("", [])
    spans = [
        Span(token.text, f"t{index % _TINTS}", " ".join(f"{number}" for number in token.ids))
        for index, token in enumerate(numbers.page)
    ]
    split = say("validation", "验证集") if numbers.page_split == "val" else say("training", "训练集")
    caption = say(
        f"The beginning of a {split} document, one tint for each token; the pointer shows its id",
        f"{split}中一篇文档的开头，以底色区分相邻词元；指针悬停时显示编号",
    )
    ids = [(token.text, " ".join(map(str, token.ids))) for token in numbers.page[:40]]
    table = Table((say("token", "词元"), say("id", "编号")), ids, code=(0,))
    return Section(say("A page in tokens", "一页文本的切分"), [Passage(spans, caption, table=table)])


def _vocabulary(numbers: TokenNumbers, say: Language) -> Section:
    total = numbers.total
    ordered = np.sort(total[total > 0])[::-1]
    count, vocabulary = int(total.sum()), len(total)
    unused = np.flatnonzero(total == 0)
    partial = int(total[numbers.partial].sum())
    rows: list[tuple[str, Cell]] = [
        (say("ids that occur", "出现过的词元"), f"{len(ordered):,} ({charts.percent(len(ordered), vocabulary)})"),
        (say("ids that never occur", "从未出现的词元"), len(unused)),
        (say("ids that occur once", "只出现一次的词元"), int(np.count_nonzero(total == 1))),
        (
            say("tokens that are a part of a character (byte pieces)", "只含字符一部分的词元（字节片段）"),
            f"{partial:,} ({charts.percent(partial, count)})",
        ),
    ]
    if unknown := numbers.counts.get("unknown_characters"):
        rows.append((say("unknown characters", "未知字符"), unknown))
    blocks: list[Block] = [Facts(rows), _rank_figure(ordered, say)]
    order = np.argsort(-total, kind="stable")
    commonest = [_row(numbers, int(token)) for token in order[:_COMMONEST] if total[token]]
    columns = (say("token", "词元"), say("id", "编号"), say("count", "次数"))
    blocks.append(Table(columns, commonest, say("The commonest tokens", "最常见的词元"), bars=2, code=(0,)))
    texts = {int(token): text_of(numbers.tokenizer, int(token)) for token in np.flatnonzero(total)}
    longest = sorted(texts, key=lambda token: (-len(texts[token]), token))[:_LONGEST]
    rows_of_longest = [(*_row(numbers, token), len(texts[token])) for token in longest]
    blocks.append(
        Table(
            (*columns, say("characters", "字符")), rows_of_longest, say("The longest tokens", "最长的词元"), code=(0,)
        )
    )
    if len(unused):
        names = {int(token): text_of(numbers.tokenizer, int(token)) for token in unused}
        names.pop(numbers.tokenizer.end_of_text, None)
        ranked = sorted(names, key=lambda token: (-len(names[token]), token))[:_UNUSED]
        spans = [Span(f"{visible(names[token])}\u2002", "", str(token)) for token in ranked]
        caption = say(f"The {len(spans)} longest tokens that never occur", f"从未出现的词元中最长的 {len(spans)} 个")
        blocks.append(Passage(spans, caption))
    return Section(say("Use of the vocabulary", "词表使用"), blocks)


def _row(numbers: TokenNumbers, token: int) -> tuple[str, str, int]:
    text = text_of(numbers.tokenizer, token)
    is_end = token == numbers.tokenizer.end_of_text
    return ("<|endoftext|>" if is_end else visible(text), str(token), int(numbers.total[token]))


def _rank_figure(ordered: np.ndarray, say: Language) -> Figure:
    """Return the frequency of tokens by rank, on logarithmic axes."""
    ranks = np.unique(np.geomspace(1, max(len(ordered), 1), _RANKS).astype(np.int64))
    ranks = ranks[ranks <= len(ordered)]
    counts = ordered[ranks - 1]
    caption = say("Occurrences of tokens by rank; both axes are logarithmic", "词元出现次数随名次的变化，两轴均为对数")
    series = Series(say("occurrences", "次数"), ranks.tolist(), counts.tolist())
    table = Table(
        (say("rank", "名次"), say("occurrences", "次数")), list(zip(ranks.tolist(), counts.tolist(), strict=True))
    )
    return Figure(charts.lines([series], caption, is_log=True, is_log_height=True), caption, table)


def _lengths(numbers: TokenNumbers, say: Language) -> Section:
    names = {"train": say("training", "训练集"), "val": say("validation", "验证集")}
    present = {split: bins for split, bins in numbers.lengths.items() if bins}
    rows: list[Sequence[Cell]] = [
        (names[split], bins.total, *bins.percentiles.values()) for split, bins in present.items()
    ]
    columns = (
        *(say("documents", "文档"), say("number", "数量"), say("shortest", "最短"), "5 %"),
        *(say("median", "中位数"), "95 %", say("longest", "最长")),
    )
    blocks: list[Block] = [Table(columns, rows)]
    captions = {
        "train": say("Training documents by length in tokens", "训练文档长度分布（词元）"),
        "val": say("Validation documents by length in tokens", "验证文档长度分布（词元）"),
    }
    blocks += [histogram(bins, captions[split], say) for split, bins in present.items()]
    return Section(say("Lengths of documents", "文档长度"), blocks)


def _sets(numbers: TokenNumbers, say: Language) -> Section:
    sets = numbers.counts.get("sets") or {}
    ranked = sorted(sets.items(), key=lambda item: (-item[1], item[0]))
    total = sum(sets.values())
    rows = [(name, count, charts.percent(count, total)) for name, count in ranked[:_SETS]]
    columns = (say("set", "子集"), say("documents", "文档"), say("share", "占比"))
    return Section(say("Documents by set", "各子集的文档"), [Table(columns, rows, bars=1)] if rows else [])


def _shift(numbers: TokenNumbers, say: Language) -> Section:
    shift = numbers.shift
    if shift is None:
        return Section("", [])
    val = numbers.frequencies["val"]
    rows: list[tuple[str, Cell]] = [
        (say("divergence of the token distributions", "词元分布的差异"), f"{shift.divergence:.4f} bit"),
        (say("the same for a random sample of training", "对照：训练集随机样本的差异"), f"{shift.expected:.4f} bit"),
        (
            say("validation tokens that training does not have", "训练集中没有的验证集词元"),
            f"{shift.unseen:,} ({charts.percent(shift.unseen, int(val.sum()))})",
        ),
        (
            say(
                f"passages of {tokens.PASSAGE} tokens that training has too",
                f"训练集中也出现的片段（每段 {tokens.PASSAGE} 个词元）",
            ),
            f"{shift.repeated:,} / {shift.passages:,} ({charts.percent(shift.repeated, shift.passages)})",
        ),
    ]
    if (overlap := numbers.counts.get("overlap_documents")) is not None:
        rows.append((say("validation documents that are trained on", "同时用于训练的验证文档"), overlap))
    text = say(
        "The divergence is Jensen–Shannon's, 0 for equal and 1 for disjoint distributions. A random sample of the "
        "training tokens, as many as those of validation, shows how much of it is chance. Passages are drawn with seed "
        f"{tokens.SEED} and looked for in the first {shift.scanned:,} training tokens.",
        "差异以 Jensen–Shannon 散度衡量：分布相同为 0，毫无重合为 1。对照是从训练词元中随机抽取的样本，与验证集一样大，"
        "其差异纯属偶然。"
        f"片段按种子 {tokens.SEED} 抽取，在前 {shift.scanned:,} 个训练词元中查找。",
    )
    totals = {split: max(int(counts.sum()), 1) for split, counts in numbers.frequencies.items()}
    distinctive = [
        (
            *_row(numbers, token)[:2],
            f"{1e6 * in_train / totals['train']:,.0f}",
            f"{1e6 * in_val / totals['val']:,.0f}",
        )
        for token, in_train, in_val in shift.distinctive
    ]
    columns = (
        *(say("token", "词元"), say("id", "编号")),
        *(say("training, per million", "训练集，每百万词元"), say("validation, per million", "验证集，每百万词元")),
    )
    caption = say("Tokens that validation has more of than training", "在验证集中比在训练集中更常见的词元")
    return Section(
        say("Training and validation", "训练集与验证集"),
        [text, Facts(rows), Table(columns, distinctive, caption, code=(0,))],
    )
