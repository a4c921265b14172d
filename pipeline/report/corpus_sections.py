"""The chapter of a report about a corpus."""

from __future__ import annotations

from pipeline.report import charts
from pipeline.report.bins import Bins
from pipeline.report.corpus import CorpusNumbers, collect
from pipeline.report.languages import Language
from pipeline.report.section import Chapter, Figure, Section, Table
from pipeline.store.artifact import Artifact


def chapter(corpus: Artifact, say: Language) -> Chapter:
    """Return the chapter of a corpus. Raises BadData if its report is damaged."""
    numbers = collect(corpus)
    counts = corpus.manifest.counts
    facts = [(say("documents", "文档"), counts.get("documents")), (say("characters", "字符"), counts.get("characters"))]
    title = say(f"Corpus {corpus.manifest.name}", f"语料 {corpus.manifest.name}")
    return Chapter(title, corpus.ref, facts, [_lengths(numbers, say)])


def _lengths(numbers: CorpusNumbers, say: Language) -> Section:
    caption = say("Sentences by length in characters", "句子长度分布（字符）")
    blocks = [histogram(numbers.sentences, caption, say)] if numbers.sentences else []
    return Section(say("Lengths", "长度"), blocks)


def histogram(bins: Bins, caption: str, say: Language) -> Figure:
    """Return the figure of a histogram, with its table."""
    table = Table((say("length", "长度"), say("number", "数量")), bins.ranges)
    return Figure(charts.histogram(bins.edges, bins.counts, caption, is_log=bins.is_log), caption, table)
