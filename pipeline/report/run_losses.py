"""Sections of a report about the loss of each validation token: by position, by passage, by character."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.report import charts, run
from pipeline.report.charts import Series, percent
from pipeline.report.languages import Language
from pipeline.report.run import Losses, RunNumbers, ScoredPassage
from pipeline.report.section import Block, Figure, Note, Passage, Section, Span, Table, visible

_CHARACTERS = 18  # rows of a table
_TINTS = 10  # h0 to h9
_MIN_OCCURRENCES = 5  # of a character whose mean cost is listed
_POINTS = 24  # of the curve by position


def sections(numbers: RunNumbers, say: Language) -> list[Section]:
    """Return the sections; for a run of an older version, one that says why they are missing."""
    losses = numbers.losses
    if losses is None and (numbers.score is None or numbers.task):
        return []  # no validation text, or a tuned run, which does not store losses by token
    if losses is None:
        missing = say(
            "This run has no losses.safetensors: it was trained by an earlier version, which did not store the loss of "
            "each token. `train` it again to see passages, characters and positions.",
            "这次训练没有 losses.safetensors：旧版本不保存每个词元的损失。重新训练后即可看到段落、字符和位置的损失。",
        )
        return [Section(say("Loss by token", "逐词元损失"), [Note(missing)])]
    return [_positions(losses, say), _passages(losses, numbers.tokenizer.vocab_size, say), _characters(losses, say)]


def _positions(losses: Losses, say: Language) -> Section:
    title = say("Loss by position", "不同位置的损失")
    ranges = run.by_position(losses.positions, _POINTS)
    if len(ranges) < 2:
        return Section(title, [])
    caption = say("Bits per token by position in the block (logarithmic)", "块内各位置的每词元比特数（横轴为对数）")
    series = Series(caption, [math.sqrt(low * high) for low, high, _ in ranges], [bits for _, _, bits in ranges])
    rows = [(f"{low:,}–{high:,}" if low < high else f"{low:,}", round(bits, 4)) for low, high, bits in ranges]
    table = Table((say("position", "位置"), say("bits per token", "每词元比特数")), rows)
    text = say(
        "The first tokens of a block have little before them. Where the line stops falling, more context no longer "
        "helps this model.",
        "块开头的词元几乎没有上文可依据。曲线从哪里起不再下降，更长的上文从那里起就帮不上这个模型。",
    )
    return Section(title, [text, Figure(charts.lines([series], caption, is_log=True), caption, table)])


def _passages(losses: Losses, vocab_size: int, say: Language) -> Section:
    """Return the best and the worst validation passages, tinted by loss."""
    title = say("Best and worst passages", "最好与最差的段落")
    most = math.log2(max(vocab_size, 2))
    scale = (say("0 bits", "0 比特"), say(f"{most:.0f} bits or more: a guess", f"{most:.0f} 比特以上：等于随机猜测"))
    blocks: list[Block] = [
        say(
            f"Passages of up to {run.PASSAGE} validation tokens, tinted by the loss of each token at step "
            f"{losses.step:,}, and chosen by bits per byte.",
            f"验证文本中的段落，最多 {run.PASSAGE} 个词元，按第 {losses.step:,} 步的损失着色，按每字节比特数挑选。",
        )
    ]
    for passages, name in ((losses.best, say("Best", "最好")), (losses.worst, say("Worst", "最差"))):
        for number, passage in enumerate(passages, start=1):
            bits, byte_bits = passage.bits_per_char, passage.bits_per_byte
            caption = say(
                f"{name} {number}: {bits:.3f} bits per character, {byte_bits:.3f} per byte",
                f"{name} {number}：每字符 {bits:.3f} 比特，每字节 {byte_bits:.3f} 比特",
            )
            blocks.append(_passage(passage, caption, most, scale if len(blocks) == 1 else None, say))
    return Section(title, blocks if len(blocks) > 1 else [])


def _passage(
    passage: ScoredPassage, caption: str, most: float, scale: tuple[str, str] | None, say: Language
) -> Passage:
    spans = [
        Span(
            token.text,
            f"h{min(int(_TINTS * max(token.bits, 0.0) / most), _TINTS - 1)}",
            say(f"{token.bits:.2f} bits", f"{token.bits:.2f} 比特"),
        )
        for token in passage.tokens
    ]
    rows = [(visible(token.text), round(token.bits, 3)) for token in passage.tokens]
    table = Table((say("token", "词元"), say("bits", "比特")), rows, bars=1, code=(0,))
    return Passage(spans, caption, scale, table)


def _characters(losses: Losses, say: Language) -> Section:
    title = say("What characters cost most", "代价最高的字符")
    if not losses.characters:
        return Section(title, [])
    total = sum(cost.bits for cost in losses.characters) + losses.ends[0]
    columns = (
        *(say("character", "字符"), say("occurrences", "次数"), say("bits in all", "总比特数")),
        *(say("share", "占比"), say("bits each", "每次比特数")),
    )

    def table(costs: Sequence[run.CharacterCost], caption: str, bars: int) -> Table:
        rows = [
            (
                visible(cost.character),
                cost.count,
                round(cost.bits),
                percent(round(cost.bits), round(total)),
                round(cost.bits / cost.count, 3),
            )
            for cost in costs
        ]
        return Table(columns, rows, caption, bars=bars, code=(0,))

    often = [cost for cost in losses.characters if cost.count >= _MIN_OCCURRENCES]
    dearest = sorted(often, key=lambda cost: (-cost.bits / cost.count, cost.character))
    text = say(
        "The loss of a token is divided evenly by its bytes. Ends of documents cost "
        f"{percent(round(losses.ends[0]), round(total))} of all bits.",
        f"词元的损失按字节平均分摊。文档结尾占总比特数的 {percent(round(losses.ends[0]), round(total))}。",
    )
    blocks: list[Block] = [text, table(losses.characters[:_CHARACTERS], say("In all", "所有出现合计"), 2)]
    if dearest:
        caption = say(
            f"For each occurrence, of characters that occur at least {_MIN_OCCURRENCES} times",
            f"每次出现的代价（只列出现至少 {_MIN_OCCURRENCES} 次的字符）",
        )
        blocks.append(table(dearest[:_CHARACTERS], caption, 4))
    return Section(title, blocks)
