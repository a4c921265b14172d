"""SentencePiece settings and warnings: every figure is compared with SentencePiece itself."""

from __future__ import annotations

import io
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceNormalizer, SentencePieceProcessor, SentencePieceTrainer

from pipeline.clean.report import sentencepiece_flags
from pipeline.clean.report.sentencepiece_flags import BYTE_PIECES, SPECIAL_PIECES, Flags, LineStats


def lines_of(texts: Sequence[str]) -> LineStats:
    sizes = [len(text.encode()) for text in texts]
    over = sum(size > sentencepiece_flags.DEFAULT_MAX_LINE_BYTES for size in sizes)
    return LineStats(Counter("".join(texts)), len(texts), max(sizes, default=0), over)


def alphabet_of_sentencepiece(texts: Sequence[str], coverage: float) -> int:
    """Return the alphabet size of a character model trained by SentencePiece, without its special pieces."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="char",
        vocab_size=50_000,
        hard_vocab_limit=False,
        character_coverage=coverage,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=1 << 20,
        minloglevel=2,
    )
    return int(SentencePieceProcessor(model_proto=model.getvalue()).vocab_size()) - 3


@pytest.fixture(scope="module")
def shuihu(shared: Path) -> list[str]:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")
    return [line for line in text.replace("。", "。\n").split("\n") if line]


@pytest.mark.parametrize("coverage", [0.9995, 0.9999, 0.98, 1.0])
def test_alphabet_of_shuihu_equals_that_of_sentencepiece(shuihu: list[str], coverage: float) -> None:
    counts = lines_of(shuihu).trainer_frequencies()
    assert sentencepiece_flags.alphabet_size(counts, coverage) == alphabet_of_sentencepiece(shuihu, coverage)


def test_default_coverage_makes_431_characters_of_shuihu_unknown(shuihu: list[str]) -> None:
    counts = lines_of(shuihu).trainer_frequencies()
    assert len(counts) - sentencepiece_flags.alphabet_size(counts, 0.9995) == 431


@pytest.mark.parametrize("coverage", [0.98, 0.99, 0.995, 1.0])
@pytest.mark.parametrize(
    "texts",
    [
        ["山" * 99, "水"],
        ["山 水" * 60, " 石▁"],
        ["山\t" * 80, "石"],
        ["山" * 490 + "甲乙丙丁戊己庚辛壬癸"],
        ["𠮷" * 98, "aa𤣥"],
    ],
    ids=["two", "spaces", "tabs", "ties", "astral"],
)
def test_spaces_tabs_and_ties_count_as_in_sentencepiece(texts: list[str], coverage: float) -> None:
    counts = lines_of(texts).trainer_frequencies()
    assert sentencepiece_flags.alphabet_size(counts, coverage) == alphabet_of_sentencepiece(texts, coverage)


@given(st.dictionaries(st.sampled_from("山水石木火土金甲乙丙"), st.integers(1, 50), min_size=1))
def test_alphabet_grows_with_coverage_to_all_characters(counts: dict[str, int]) -> None:
    sizes = [sentencepiece_flags.alphabet_size(counts, coverage) for coverage in (0.1, 0.5, 0.9, 0.99, 1.0)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(counts)


def test_rewritten_characters_equal_those_of_nmt_nfkc() -> None:
    normalizer = SentencePieceNormalizer(rule_name="nmt_nfkc")
    rewrites = normalizer.normalize
    for code in (*range(1, 0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200)):
        character = chr(code)
        if character == "\n" or unicodedata.category(character) == "Cn":  # unknown to this version of Python
            continue
        framed = f"甲{character}甲"
        expected = rewrites(framed) != "▁" + framed.replace(" ", "▁")
        assert bool(sentencepiece_flags.rewritten_characters({character: 1})) == expected, hex(code)


def test_chinese_marks_are_rewritten_and_characters_are_not() -> None:
    counts = dict.fromkeys("，！？：；（）…①。、“”《》—水浒传𠮷", 1)
    assert "".join(sentencepiece_flags.rewritten_characters(counts)) == "，！？：；（）…①"


def test_flags_are_arguments_of_spm_train() -> None:
    assert Flags(vocab_size=8000, max_sentence_length=4192).as_arguments() == [
        "--normalization_rule_name=identity",
        "--add_dummy_prefix=false",
        "--remove_extra_whitespaces=false",
        "--character_coverage=0.9999",
        "--byte_fallback=true",
        "--max_sentence_length=4192",
        "--vocab_size=8000",
    ]
    assert not any("vocab_size" in argument for argument in Flags().as_arguments())


def test_long_line_raises_max_sentence_length() -> None:
    long = lines_of(["水" * 2_000, "水"])
    assert sentencepiece_flags.flags(long).max_sentence_length == 6_000
    assert any("would skip 1 of 2 lines" in text for text in sentencepiece_flags.warnings(long))
    short = lines_of(["水" * 1_397])
    assert sentencepiece_flags.flags(short).max_sentence_length == 4_192
    assert not any("skip" in text for text in sentencepiece_flags.warnings(short))


@pytest.mark.parametrize(
    ("kinds", "characters", "size"),
    [(1_900, 28_000, 4_000), (4_100, 860_000, 8_000), (9_700, 4_000_000, 16_000), (20_000, 10**9, 32_000)],
    ids=["a story", "one novel", "poems", "a library"],
)
def test_size_grows_with_the_number_of_distinct_characters(kinds: int, characters: int, size: int) -> None:
    counts = {chr(0x4E00 + number): characters // kinds for number in range(kinds)}
    settings = sentencepiece_flags.flags(LineStats(counts, 1, 1, 0))
    assert settings.vocab_size == size
    assert sentencepiece_flags.min_vocab_size(counts, settings) < size


def test_too_many_distinct_characters_lower_the_coverage() -> None:
    counts = {chr(0x4E00 + number): 1 + 10 ** (6 - number // 6_000) for number in range(40_000)}
    settings = sentencepiece_flags.flags(LineStats(counts, 1, 1, 0))
    assert (settings.character_coverage, settings.byte_fallback, settings.vocab_size) == (0.9995, True, 32_000)


def test_many_singletons_lower_the_coverage_so_that_bytes_are_learned() -> None:
    common = {chr(0x4E00 + number): 1_000 for number in range(100)}
    singletons = {chr(0x6000 + number): 1 for number in range(60)}
    few_singletons = dict(list(singletons.items())[:9])
    assert sentencepiece_flags.flags(LineStats(common | few_singletons, 1, 1, 0)).character_coverage == 0.9999
    settings = sentencepiece_flags.flags(LineStats(common | singletons, 1, 1, 0))
    assert settings.character_coverage == 0.9995
    assert sentencepiece_flags.alphabet_size(common | singletons, settings.character_coverage) < 160


def test_least_size_is_the_smallest_trainable_vocabulary(shuihu: list[str]) -> None:
    texts = shuihu[:400]
    settings = Flags(character_coverage=0.99)
    least = sentencepiece_flags.min_vocab_size(lines_of(texts).trainer_frequencies(), settings)

    def train(size: int) -> None:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=io.BytesIO(),
            model_type="bpe",
            vocab_size=size,
            bos_id=-1,
            minloglevel=2,
            **settings.settings(),
        )

    train(least)
    with pytest.raises(RuntimeError, match="smaller than required_chars"):
        train(least - 1)
    assert (
        least
        == sentencepiece_flags.alphabet_size(lines_of(texts).trainer_frequencies(), 0.99) + BYTE_PIECES + SPECIAL_PIECES
    )


def test_empty_text_gives_no_warnings() -> None:
    nothing = lines_of([])
    assert sentencepiece_flags.warnings(nothing) == []
    assert sentencepiece_flags.flags(nothing).max_sentence_length == 4_192


def test_rare_kinds_are_counted_in_words() -> None:
    common = "山水" * 6_000
    for rare, shown in (("石", "; 1 rare kind is spelled as bytes"), ("石月", "; 2 rare kinds are spelled as bytes")):
        assert sentencepiece_flags.warnings(lines_of([common + rare]))[-1].endswith(shown)


def test_reserved_character_gives_a_warning() -> None:
    assert any("lines with ▅ are skipped" in text for text in sentencepiece_flags.warnings(lines_of(["山▅水", "石"])))


def test_prefix_warning_is_for_chinese_text_only() -> None:
    english = sentencepiece_flags.warnings(lines_of(["It was the best of times."]))
    chinese = sentencepiece_flags.warnings(lines_of(["话说大宋。"]))
    assert not any("prefix" in text for text in english)
    assert any("add_dummy_prefix=true would put ▁ before each of 1 lines" in text for text in chinese)
