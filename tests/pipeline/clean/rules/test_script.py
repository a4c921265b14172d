"""Script: equal to OpenCC but cheaper and idempotent; packages that overwrite OpenCC are rejected."""

from __future__ import annotations

import importlib
import io
import json
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rules import script
from pipeline.clean.utf16 import Utf16Text, decode_utf16, encode_utf16, join_documents, split_documents
from pipeline.errors import BadConfig

opencc = pytest.importorskip("opencc")
KEPT = "乾徵於昇氾祕蒐薹計釐陞麽"


def converted(policy: str, text: str, counts: Counter[str] | None = None) -> str:
    rule = script.rule(policy)
    assert rule is not None
    return decode_utf16(rule.apply(encode_utf16(text), Counter() if counts is None else counts))


@pytest.fixture(scope="module")
def shuihu(shared: Path) -> str:
    return (shared / "data/shuihu_raw.txt").read_text("utf-8-sig")


@pytest.fixture(scope="module")
def tang(shared: Path) -> Utf16Text:
    with zstandard.open(shared / "data/tang_poems.jsonl.zst", "rb") as packed:
        lines = io.TextIOWrapper(packed, encoding="utf-8")
        return join_documents([json.loads(line)["text"] for _, line in zip(range(12_000), lines, strict=False)])


@pytest.mark.parametrize(
    ("policy", "text", "expected"),
    [
        ("simplified", "後漢書", "后汉书"),
        ("simplified", "皇后與太后", "皇后与太后"),
        ("simplified", "反覆深沈", "反复深沉"),  # changed only in phrases
        ("simplified", "乾坤，乾燥", "乾坤，干燥"),
        ("simplified", "王戎簡要\n裴楷清通", "王戎简要\n裴楷清通"),
        ("simplified", "𡞵㜷", "㛟𡝠"),  # into and out of the first plane
        ("simplified", "Hello, 世界", "Hello, 世界"),
        ("traditional", "后汉书", "後漢書"),
        ("traditional", "头发发财", "頭髮發財"),
        ("traditional", "皇后与太后", "皇后與太后"),
    ],
)
def test_text_is_converted(policy: str, text: str, expected: str) -> None:
    assert converted(policy, text) == expected


def test_keep_has_no_rule() -> None:
    assert script.rule("keep") is None


def test_changed_pairs_are_counted() -> None:
    counts: Counter[str] = Counter()
    converted("simplified", "後漢書，後人，史記。", counts)
    assert counts == {"後 → 后": 2, "漢 → 汉": 1, "書 → 书": 1, "記 → 记": 1}


def test_risks_are_the_ambiguous_pairs() -> None:
    counts: Counter[str] = Counter()
    converted("traditional", "头发，发财，后人，汉书。", counts)
    assert script.ambiguous_pairs(counts) == {"发 → 發": 1, "发 → 髮": 1, "后 → 後": 1}


def test_unknown_script_raises() -> None:
    with pytest.raises(BadConfig, match="--script must be one of keep, simplified, traditional, got 'fan'"):
        script.rule("fan")


def test_documents_stay_separate_and_lone_surrogates_are_kept() -> None:
    rule = script.rule("simplified")
    assert rule is not None
    page = join_documents(["後漢", "", "書\ud840", "\udc00漢\ud840記"])
    assert split_documents(rule.apply(page, Counter())) == ["后汉", "", "书\ud840", "\udc00汉\ud840记"]


def test_page_with_nothing_to_convert_is_returned_unchanged() -> None:
    rule = script.rule("simplified")
    assert rule is not None
    page = encode_utf16("林冲道：“好酒。”")
    assert rule.apply(page, Counter()) is page


# Phrases that OpenCC converts a second time, and this rule does not.
NOT_IDEMPOTENT = ["畢昇", "變徵", "蕭乾", "顛乾倒坤", "陳昇", "懷釐", "吳祕", "東氾"]


@pytest.mark.parametrize("phrase", NOT_IDEMPOTENT)
def test_character_kept_by_a_phrase_is_kept_the_second_time(phrase: str) -> None:
    text = f"論{phrase}之後"
    once = converted("simplified", text)
    plain = opencc.OpenCC("t2s")
    assert once == plain.convert(text)
    assert plain.convert(once) != once
    assert converted("simplified", once) == once


@pytest.mark.parametrize(("text", "expected"), [("鹏程万里", "鵬程萬里"), ("艳后", "豔后"), ("于游乐", "於遊樂")])
def test_traditional_is_idempotent(text: str, expected: str) -> None:
    assert converted("traditional", text) == expected
    assert converted("traditional", expected) == expected


def test_shuihu_equals_a_full_conversion_by_opencc(shuihu: str) -> None:
    counts: Counter[str] = Counter()
    ours = converted("simplified", shuihu, counts)
    theirs = opencc.OpenCC("t2s").convert(shuihu)
    assert [(shuihu[at - 2 : at + 2], b) for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b] == [
        ("忽。於戏", "于")  # of 於戲, alas: OpenCC keeps 於 only if the phrase is traditional
    ]
    assert counts.total() == 181
    assert counts.most_common(5) == [
        ("夥 → 伙", 36),
        ("捱 → 挨", 25),
        ("戩 → 戬", 20),
        ("拚 → 拼", 15),
        ("吒 → 咤", 13),
    ]
    assert converted("simplified", ours) == ours


def test_poems_equal_a_full_conversion_by_opencc(tang: Utf16Text) -> None:
    rule = script.rule("simplified")
    assert rule is not None
    counts: Counter[str] = Counter()
    out = rule.apply(tang, counts)
    before, ours = decode_utf16(tang), decode_utf16(out)
    theirs = opencc.OpenCC("t2s").convert(before)
    differences = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert differences == [("麽", "么")]  # 幺麽
    assert counts.total() == sum(a != b for a, b in zip(before, ours, strict=True))
    assert decode_utf16(rule.apply(out, Counter())) == ours


def test_traditional_shuihu_equals_a_conversion_by_opencc(shuihu: str) -> None:
    text = shuihu[:60_000]
    ours = converted("traditional", text)
    assert ours == opencc.OpenCC("s2t").convert(text)
    assert converted("traditional", ours) == ours


def test_opencc_converts_only_clauses_that_may_change(shuihu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    converted_length = 0
    convert = script._opencc_convert

    def counted(policy: str, text: np.ndarray) -> np.ndarray:
        nonlocal converted_length
        converted_length += len(text)
        return convert(policy, text)

    converted("simplified", "後")  # build the tables
    monkeypatch.setattr(script, "_opencc_convert", counted)
    converted("simplified", shuihu)
    assert converted_length < len(shuihu) // 100


PIECES = "後漢書畢昇乾坤隆徵羽於戲麼幺麽覆反沈深藉慰瞭明毕变萧里后云发头干万丑面系豔萬𡞵㜷a1，。\n\ue000"


@given(st.text(st.sampled_from(PIECES), max_size=24), st.sampled_from(["simplified", "traditional"]))
@example("毕昇後", "simplified")
@example("阙里后", "traditional")
def test_rule_is_idempotent_and_keeps_the_length(text: str, policy: str) -> None:
    once = converted(policy, text)
    assert len(once) == len(text)
    assert converted(policy, once) == once


@given(st.lists(st.text(st.sampled_from(PIECES), max_size=12), min_size=1, max_size=4))
def test_documents_of_a_page_do_not_affect_each_other(texts: list[str]) -> None:
    rule = script.rule("simplified")
    assert rule is not None
    assert split_documents(rule.apply(join_documents(texts), Counter())) == [
        converted("simplified", text) for text in texts
    ]


@given(st.text(st.sampled_from([piece for piece in PIECES if piece not in KEPT + "麼"]), max_size=24))
def test_text_without_ambiguity_equals_repeated_opencc(text: str) -> None:
    expected, plain = text, opencc.OpenCC("t2s")
    while (converted_again := plain.convert(expected)) != expected:
        expected = converted_again
    assert converted("simplified", text) == expected


def dictionary(name: str, folder: Path) -> dict[str, list[str]]:
    """Read one of OpenCC's dictionaries with the program that OpenCC includes."""
    home = Path(opencc.__file__).parent / "clib"
    program, target = home / "bin" / "opencc_dict", folder / name
    if not program.exists():
        pytest.skip("this build of OpenCC has no opencc_dict")
    source = home / "share/opencc" / f"{name}.ocd2"
    subprocess.run([program, "-f", "ocd2", "-t", "text", "-i", source, "-o", target], check=True, capture_output=True)
    return {key: values.split(" ") for key, values in (line.split("\t") for line in target.read_text().splitlines())}


def test_listed_characters_are_those_of_the_dictionaries(tmp_path: Path) -> None:
    phrases = {phrase: values[0] for phrase, values in dictionary("TSPhrases", tmp_path).items()}
    plain = opencc.OpenCC("t2s")
    alone = {c: plain.convert(c) for phrase in phrases for c in phrase}
    hidden = {p: v for p, v in phrases.items() if p != v and all(alone[c] == c for c in p)}
    changed = {a for p, v in hidden.items() for a, b in zip(p, v, strict=True) if a != b}
    kept_in_phrases = {a for v in phrases.values() for a, b in zip(v, plain.convert(v), strict=True) if a != b}
    assert changed == set(script._IN_PHRASES)
    assert kept_in_phrases == set(script._KEPT_IN_PHRASES) == set(KEPT)
    several = {c for c, values in dictionary("STCharacters", tmp_path).items() if len(values) > 1}
    assert several == set(script.AMBIGUOUS)


@pytest.mark.parametrize("name", ["TSPhrases", "STPhrases", "STPhrases_GeneratedFromRegionalPhrases"])
def test_no_opencc_phrase_contains_a_separator(name: str, tmp_path: Path) -> None:
    phrases = dictionary(name, tmp_path)
    assert not {character for phrase in phrases for character in phrase} & set(script._SEPARATORS)
    assert all(len(value) == len(phrase) for phrase, values in phrases.items() for value in values)


@pytest.mark.parametrize("policy", ["simplified", "traditional"])
def test_converting_every_opencc_phrase_is_idempotent(policy: str, tmp_path: Path) -> None:
    names = {"simplified": ["TSPhrases"], "traditional": ["STPhrases"]}[policy]
    phrases = [phrase for name in names for phrase in dictionary(name, tmp_path)][:20_000]
    once = converted(policy, "\n".join(phrases))
    assert converted(policy, once) == once


def test_missing_opencc_raises_with_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(BadConfig) as failed:
        script.rule("simplified")
    assert failed.value.hint == "pip install -e '.[zh]'"


def test_package_that_overwrites_opencc_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "opencc_python_reimplemented-0.1.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: opencc-python-reimplemented\nVersion: 0.1.7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(BadConfig, match="opencc-python-reimplemented is installed") as failed:
        script.rule("simplified")
    assert "pip uninstall" in failed.value.hint


def test_other_module_named_opencc_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", types.ModuleType("opencc"))
    with pytest.raises(BadConfig, match="not the original OpenCC"):
        script.rule("traditional")
