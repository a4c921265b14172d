"""Gaiji: notations for characters that a text could not encode are mapped or replaced."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.clean.rule import Counts, Rule
from pipeline.clean.rules import gaiji
from pipeline.clean.utf16 import decode_utf16, encode_utf16
from pipeline.errors import BadConfig, InputMissing

PIECES = st.sampled_from(
    [
        *"女比木養深□，。x1&;{}[]<>*/=⿰⿲⿾㇯𪀪囗注",
        *("\ue10e", "\uf8ff", "\U000f0001", "\U0010fffd", "\udb80", "\0", "\n"),
        *("&KR0869;", "&amp;", "{上休下鳥}", "[女*比]", "[H。/70x]", "<囗贵>", "⿰木養", "[一-三]", "{口大}"),
    ]
)
TEXT = st.lists(PIECES, max_size=14).map("".join)
MAPPED = {"{口大}": "夻", "&KR0869;": "𪀪", "⿰木養": "橡"}
PRIVATE = {"\ue10e": "肐", "\U000f0001": "甲"}


def run(rule: Rule, text: str) -> tuple[str, Counts]:
    counts: Counts = Counter()
    return decode_utf16(rule.apply(encode_utf16(text), counts)), counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("肐\ue10e地", "肐□地"),
        ("\U000f0001\U0010fffd", "□□"),
        ("見&KR0869;之", "見□之"),
        ("&CB00104;&CH-1234;&CDP-8B7C;", "□□□"),
        ("&M012345;&C3-4A5B;&A-123;", "□□□"),
        ("Q&A1;&M12;", "Q&A1;&M12;"),
        ("{上休下鳥}", "□"),
        ("蜳{蜳攵}", "蜳□"),
        ("酒{炙火=肉}。{亠/樂，木=水}", "酒□。□"),
        ("{氵|\ue817/凡}", "□"),
        ("[女*比][金*本]", "□□"),
        ("[女*((奐-大)/比)]", "□"),
        ("[H。/70x]氊", "□氊"),
        ("<囗贵>", "□"),
        ("⿰木養深黃", "□深黃"),
        ("⿲木⿱木木木深", "□深"),
        ("⿰亻&CDP-8B7C;深", "□深"),
        ("[女*{口大}]", "□"),
    ],
)
def test_unmapped_gaiji_becomes_one_lacuna(text: str, expected: str) -> None:
    assert run(gaiji.rule(), text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        *("[注]", "[一]", "[三○-三二]", "[05]", "[12]", "[□□□]", "[空，未餘几]", "億[兆]慶"),
        *('{"a": 1}', "a{color:red}", "{{疒}}", "${疒}", "{}", "{陶潛\n淵明}"),
        *("<序>", "<水龙吟>", "<br>", "<pb:KR1h0004>", "a<b", "R&D; &amp; &nbsp; &frac12;", "&KR;"),
    ],
)
def test_ordinary_brackets_and_entities_are_kept(text: str) -> None:
    assert run(gaiji.rule(), text) == (text, Counter())


@pytest.mark.parametrize(
    "text",
    [
        *("他写道{大笑}，便走了。", "{笑}", "{掌声}", "{众人笑}", "{拍手大笑}", "{大笑？}", "{下略}", "{唱、白}"),
        *("[北京-上海]的车票", "[三国演义/罗贯中著]", "[三国演义 / 罗贯中 著 ]", "[作者-译者]", "<水浒/红楼>"),
        *("{北京/上海}", "{左传}", "{上接第一版}", "{(大笑)}"),
    ],
)
def test_words_in_brackets_are_kept(text: str) -> None:
    assert run(gaiji.rule(), text) == (text, Counter())


@pytest.mark.parametrize(
    "gaiji_text",
    [
        *("{口大}", "{風昔}", "{孛支}", "{蜳攵}", "{疒}", "{鋹金}", "{糹耳少}", "{車□}", "{足兀}", "{\ue10e大}"),
        *("{巩/言}", "{姊女=臼}", "{果/虫虫}", "{彳|天天/心}", "{篦𥫗+鳥}", "[序-予+廢]", "[(王*巨)/木]", "<亻/木>"),
        *("{上休下鳥}", "{右上加卄}", "{喁左爲禹}", "{伭右上爲一}", "{下爲火}", "{丿爲丶}"),
    ],
)
def test_descriptions_of_characters_are_gaiji(gaiji_text: str) -> None:
    assert run(gaiji.rule(), f"見{gaiji_text}之")[0] == "見□之"


def test_words_in_brackets_that_a_map_contains_are_replaced() -> None:
    assert run(gaiji.rule("lacuna", {"{大笑}": "甲"}), "{大笑}{大哭}")[0] == "甲{大哭}"


def test_gaiji_within_words_in_brackets_are_replaced() -> None:
    assert run(gaiji.rule(), "{甲乙丙\ue10e丁}[北京-⿰木養海]")[0] == "{甲乙丙□丁}[北京-□海]"


@pytest.mark.parametrize("text", ["⿰木", "⿰⿱木養，深", "⿰，", "木⿰", "⿰木\n養"])
def test_malformed_description_sequence_is_kept_and_counted(text: str) -> None:
    cleaned, counts = run(gaiji.rule("drop"), text)
    assert cleaned == text
    assert counts == {"malformed description sequence kept": 1}


def test_maps_take_precedence_over_the_policy() -> None:
    cleaned, counts = run(gaiji.rule("drop", MAPPED, PRIVATE), "{口大}\ue10e\ue10e&KR0869;\ue111&KR0001;")
    assert cleaned == "夻肐肐𪀪"
    assert counts == {
        "{口大} → 夻": 1,
        "U+E10E → 肐": 2,
        "&KR0869; → 𪀪": 1,
        "U+E111 dropped": 1,
        "&KR0001; dropped": 1,
        "mapped": 4,
        "unmapped": 2,
    }


def test_keep_changes_nothing_and_counts_everything() -> None:
    text = "\ue10e{口大}⿰木養"
    cleaned, counts = run(gaiji.rule("keep"), text)
    assert cleaned == text
    assert counts == {"U+E10E kept": 1, "{口大} kept": 1, "⿰木養 kept": 1, "unmapped": 3}


@pytest.mark.parametrize("policy", gaiji.POLICIES)
@given(text=st.text("林冲\ue10e\ue111\U000f0001\U0010fffd\udb80\0\n", max_size=30))
def test_fast_path_for_private_use_equals_the_general_path(policy: str, text: str) -> None:
    fast = run(gaiji.rule(policy, {}, PRIVATE), text)
    slow = run(gaiji.rule(policy, {}, {**PRIVATE, "\uf000": "𪀪"}), text)  # a target beyond the first plane
    assert fast == slow


@pytest.mark.parametrize("policy", gaiji.POLICIES)
@given(text=TEXT)
@example("⿰{口大}中")
@example("[女*{口大}]")
@example("{上{下}休}")
def test_rule_is_idempotent_and_keeps_documents_apart(policy: str, text: str) -> None:
    rule = gaiji.rule(policy, MAPPED, PRIVATE)
    once, _ = run(rule, text)
    assert run(rule, once)[0] == once
    assert once.count("\0") == text.count("\0")


@given(text=TEXT)
def test_default_policy_counts_every_replacement(text: str) -> None:
    cleaned, counts = run(gaiji.rule(), text)
    assert cleaned.count("□") - text.count("□") <= counts["unmapped"]
    assert (cleaned == text) == (not counts["unmapped"])


@given(text=TEXT)
def test_rule_changes_nothing_without_its_triggers(text: str) -> None:
    rule = gaiji.rule()
    if not any(low <= unit <= high for unit in encode_utf16(text).units.tolist() for low, high in rule.triggers):
        assert run(rule, text) == (text, Counter())


def test_all_47_private_use_characters_of_shuihu_are_replaced(shared: Path) -> None:
    text = (shared / "data" / "shuihu_raw.txt").read_text(encoding="utf-8-sig")
    cleaned, counts = run(gaiji.rule(pua_map={"\ue001": "幡"}), text)
    assert (counts["mapped"], counts["unmapped"]) == (2, 45)
    assert counts["U+E10E → □"] == 6
    assert cleaned.count("□") == 45
    assert len(cleaned) == len(text)


def test_map_is_read_from_lines_with_tabs_commas_or_arrows(tmp_path: Path) -> None:
    path = tmp_path / "map.tsv"
    path.write_text(
        "# gaiji\n{上休下鳥}\t𪀪\n\n&KR0869;,宋\nU+E001\t幡\nE002,U+5E61\n\ue003\t旛\n{木} → 木\n", encoding="utf-8-sig"
    )
    expected = {"{上休下鳥}": "𪀪", "&KR0869;": "宋", "\ue001": "幡", "\ue002": "幡", "\ue003": "旛", "{木}": "木"}
    assert gaiji.load_map(path) == expected


def test_map_is_read_from_json_of_strings_or_chinese_poetry(tmp_path: Path) -> None:
    path = tmp_path / "表面结构字.json"
    entries = {
        "{上休下鸟}": [{"font": "𪀪", "unicode": "\\U0002A02A"}],
        "{口大}": [{"font": "𠯈"}, {"font": "㕦"}],
        "{亻丸}": [{"font": "⿰亻丸"}],
        "{下为尔}": [],
        "{丰}": "丯",
    }
    path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    assert gaiji.load_map(path) == {"{上休下鸟}": "𪀪", "{口大}": "𠯈", "{丰}": "丯"}


def test_keys_of_a_map_are_normalised_like_the_text(tmp_path: Path) -> None:
    path = tmp_path / "map.tsv"
    path.write_text("{⼈/豈}\t甲\n", encoding="utf-8")  # a Kangxi radical and a compatibility ideograph
    assert gaiji.load_map(path) == {"{人/豈}": "甲"}


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("map.tsv", "{口大}\t夻\n林冲\t甲\n", "line 2"),
        ("map.tsv", "{口大}\t\n", "line 1"),
        ("map.tsv", "{口大}\n", "line 1"),
        ("map.tsv", "{口大}\t夻\n{口大}\t㕦\n", "line 2"),
        ("map.tsv", "{口大}\t{大}\n", "line 1"),
        ("map.tsv", "U+4E00\t乙\n", "line 1"),
        ("map.json", '{"{口大}": "夻"', "JSON"),
        ("map.json", '["夻"]', "object"),
        ("map.json", '{"{口大}": 3}', "{口大}"),
    ],
)
def test_invalid_map_raises_with_file_and_line(tmp_path: Path, name: str, content: str, fragment: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadConfig) as raised:
        gaiji.load_map(path)
    assert str(path) in raised.value.message
    assert fragment in raised.value.message
    assert raised.value.hint


def test_missing_map_and_other_encoding_raise(tmp_path: Path) -> None:
    with pytest.raises(InputMissing):
        gaiji.load_map(tmp_path / "none.tsv")
    (tmp_path / "gbk.tsv").write_bytes("{口大}\t夻".encode("gb18030"))
    with pytest.raises(BadConfig, match="UTF-8"):
        gaiji.load_map(tmp_path / "gbk.tsv")


def test_unknown_policy_raises() -> None:
    with pytest.raises(BadConfig, match="drop-unit"):
        gaiji.rule("drop-unit")
