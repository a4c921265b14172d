"""What SentencePiece would do to a text is told before any training: each figure is compared with SentencePiece."""

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

from pipeline.clean.report import sentencepiece_flags as advice
from pipeline.clean.report.sentencepiece_flags import BYTES, SPECIAL, Flags, Lines


def lines_of(texts: Sequence[str]) -> Lines:
    sizes = [len(text.encode()) for text in texts]
    over = sum(size > advice.DEFAULT_LINE for size in sizes)
    return Lines(Counter("".join(texts)), len(texts), max(sizes, default=0), over)


def alphabet_of_sentencepiece(texts: Sequence[str], coverage: float) -> int:
    """How many characters a model of single characters gets, but for those that each has."""
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
def test_the_kinds_of_shuihu_that_a_coverage_keeps_are_those_of_sentencepiece(
    shuihu: list[str], coverage: float
) -> None:
    seen = lines_of(shuihu).trained()
    assert advice.alphabet(seen, coverage) == alphabet_of_sentencepiece(shuihu, coverage)


def test_the_default_coverage_makes_431_kinds_of_shuihu_unknown(shuihu: list[str]) -> None:
    seen = lines_of(shuihu).trained()
    assert len(seen) - advice.alphabet(seen, 0.9995) == 431


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
def test_spaces_tabs_and_ties_count_as_they_do_for_sentencepiece(texts: list[str], coverage: float) -> None:
    seen = lines_of(texts).trained()
    assert advice.alphabet(seen, coverage) == alphabet_of_sentencepiece(texts, coverage)


@given(st.dictionaries(st.sampled_from("山水石木火土金甲乙丙"), st.integers(1, 50), min_size=1))
def test_a_higher_coverage_never_keeps_fewer_and_a_full_one_keeps_all(seen: dict[str, int]) -> None:
    kept = [advice.alphabet(seen, coverage) for coverage in (0.1, 0.5, 0.9, 0.99, 1.0)]
    assert kept == sorted(kept)
    assert kept[-1] == len(seen)


def test_the_characters_that_nmt_nfkc_rewrites_are_those_that_it_rewrites_there() -> None:
    normalizer = SentencePieceNormalizer(rule_name="nmt_nfkc")
    rewrites = normalizer.normalize
    for code in (*range(1, 0xD800), *range(0xE000, 0x30000), *range(0xE0000, 0xE0200)):
        character = chr(code)
        if character == "\n" or unicodedata.category(character) == "Cn":  # of which this Python knows nothing yet
            continue
        framed = f"甲{character}甲"
        expected = rewrites(framed) != "▁" + framed.replace(" ", "▁")
        assert bool(advice.rewritten({character: 1})) == expected, hex(code)


def test_the_marks_of_chinese_text_are_rewritten_and_its_characters_are_not() -> None:
    seen = dict.fromkeys("，！？：；（）…①。、“”《》—水浒传𠮷", 1)
    assert "".join(advice.rewritten(seen)) == "，！？：；（）…①"


def test_the_flags_spell_what_spm_train_takes() -> None:
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


def test_a_line_over_the_default_raises_the_limit_to_the_longest() -> None:
    long = lines_of(["水" * 2_000, "水"])
    assert advice.flags(long).max_sentence_length == 6_000
    assert any("would skip 1 of 2 lines" in each for each in advice.warnings(long))
    short = lines_of(["水" * 1_397])
    assert advice.flags(short).max_sentence_length == 4_192
    assert not any("skip" in each for each in advice.warnings(short))


@pytest.mark.parametrize(
    ("kinds", "characters", "size"),
    [(1_900, 28_000, 4_000), (4_100, 860_000, 8_000), (9_700, 4_000_000, 16_000), (20_000, 10**9, 32_000)],
    ids=["a story", "one novel", "poems", "a library"],
)
def test_the_size_grows_with_the_kinds_of_characters(kinds: int, characters: int, size: int) -> None:
    seen = {chr(0x4E00 + number): characters // kinds for number in range(kinds)}
    chosen = advice.flags(Lines(seen, 1, 1, 0))
    assert chosen.vocab_size == size
    assert advice.least_size(seen, chosen) < size


def test_a_text_of_more_kinds_than_any_size_holds_spells_more_of_them_as_bytes() -> None:
    seen = {chr(0x4E00 + number): 1 + 10 ** (6 - number // 6_000) for number in range(40_000)}
    chosen = advice.flags(Lines(seen, 1, 1, 0))
    assert (chosen.character_coverage, chosen.byte_fallback, chosen.vocab_size) == (0.9995, True, 32_000)


def test_where_many_characters_came_once_the_rarest_are_spelled_as_bytes_so_that_bytes_are_learned() -> None:
    common = {chr(0x4E00 + number): 1_000 for number in range(100)}
    once = {chr(0x6000 + number): 1 for number in range(60)}
    few = dict(list(once.items())[:9])
    assert advice.flags(Lines(common | few, 1, 1, 0)).character_coverage == 0.9999
    chosen = advice.flags(Lines(common | once, 1, 1, 0))
    assert chosen.character_coverage == 0.9995
    assert advice.alphabet(common | once, chosen.character_coverage) < 160


def test_the_least_vocabulary_is_the_one_that_can_just_be_trained(shuihu: list[str]) -> None:
    texts = shuihu[:400]
    chosen = Flags(character_coverage=0.99)
    least = advice.least_size(lines_of(texts).trained(), chosen)

    def train(size: int) -> None:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=io.BytesIO(),
            model_type="bpe",
            vocab_size=size,
            bos_id=-1,
            minloglevel=2,
            **chosen.settings(),
        )

    train(least)
    with pytest.raises(RuntimeError, match="smaller than required_chars"):
        train(least - 1)
    assert least == advice.alphabet(lines_of(texts).trained(), 0.99) + BYTES + SPECIAL


def test_an_empty_text_needs_no_advice() -> None:
    nothing = lines_of([])
    assert advice.warnings(nothing) == []
    assert advice.flags(nothing).max_sentence_length == 4_192


def test_lines_that_no_setting_saves_are_named() -> None:
    assert any("lines with ▅ are skipped" in each for each in advice.warnings(lines_of(["山▅水", "石"])))


def test_english_text_is_not_told_of_the_prefix_that_suits_it() -> None:
    english = advice.warnings(lines_of(["It was the best of times."]))
    chinese = advice.warnings(lines_of(["话说大宋。"]))
    assert not any("prefix" in each for each in english)
    assert any("add_dummy_prefix=true would put ▁ before each of 1 lines" in each for each in chinese)
