"""Pages with planted markup, ads, print lines and damage: the text stays, and every lost Han character is counted."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

from pipeline.clean import profiles
from pipeline.clean.cleaner import Cleaner
from pipeline.clean.options import CleanOptions
from pipeline.clean.utf16 import Utf16Text, decode_utf16, split_documents

PAGES = 2000
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
SENTENCES = (
    *("话说大宋仁宗天子在位，嘉祐三年三月三日五更三点，天子驾坐紫宸殿。", "众官拜舞已毕，各归班次。"),
    *("李小二道：“恩人休怪小人多嘴，此处正要寻个去处安身。”", "林冲听了，谢道：“多得你夫妻两个照顾。”"),
    *("次日早起来，吃些茶饭，提了枪，信步投东来。", "那雪正下得紧，越觉身上寒冷！", "却是何人在此？"),
    *("庄客们都来报道：庄外有一簇人马，打着火把，渐近前来。", "太公闻言大惊，便叫大小庄客各执枪棒。"),
    *("当夜无话。", "只见一个大汉，头戴范阳毡笠，身穿皂布直裰，手里提着朴刀，大踏步赶将来。"),
)
ADS = (
    *("请收藏本站：https://www.biqg.cc。笔趣阁手机版：https://m.biqg.cc", "更新时间：2007-11-16 7:55:51本章字数：4804"),
    *("------章节内容开始-------", "☆☆☆☆☆☆", "----------", "Ww w.xia oshuotxT.ne t", "(未完待续。)"),
)
HEADS = ("水浒传", "第一册　水浒全传")
SHIFTED = "".join(SENTENCES[7:]).encode("gb18030")[1:121].decode("gb18030", "replace")


def paragraphs_of(draw: random.Random) -> list[str]:
    return ["".join(draw.choices(SENTENCES, k=draw.randint(1, 6))) for _ in range(draw.randint(2, 12))]


def as_html(draw: random.Random, paragraphs: list[str]) -> list[str]:
    shapes = (
        "<p>{}</p>",
        "&nbsp;&nbsp;{}<br>",
        "<p class='a'>&#12288;&#12288;{}</p>",
        "<div>{}<br/></div>",
        "{}<br />",
    )
    shape = draw.choice(shapes)
    return [shape.format(paragraph) for paragraph in paragraphs]


def with_ads(draw: random.Random, paragraphs: list[str]) -> list[str]:
    return [line for paragraph in paragraphs for line in (paragraph, *draw.sample(ADS, draw.randint(0, 2)))]


def as_print(draw: random.Random, paragraphs: list[str]) -> list[str]:
    width, page_height, lines = draw.randint(18, 40), draw.randint(8, 30), []
    for paragraph in paragraphs:
        text = "　　" + paragraph
        lines += [text[start : start + width] for start in range(0, len(text), width)]
    head, number, pages = draw.choice(HEADS), draw.randint(1, 300), []
    for start in range(0, len(lines), page_height):
        pages += [*lines[start : start + page_height], f"— {number} —", head]
        number += 1
    return pages if draw.random() < 0.7 else lines


def with_damage(draw: random.Random, paragraphs: list[str]) -> list[str]:
    damages: tuple[Callable[[str], str], ...] = (
        lambda line: line + "\n" + SHIFTED,
        lambda line: line + "�",
        lambda line: line.replace("，", "，\ue123", 1),
        lambda line: line + "{上休下鳥}",
        lambda line: "HTTP/1.1 200 OK Content-Type=[text/html]\n" + line,
        lambda line: line + "（按：此处原缺）",
    )
    return [draw.choice(damages)(line) if draw.random() < 0.3 else line for line in paragraphs]


PLANTS = (with_damage, as_print, with_ads, as_html)  # in this order: nobody prints the source of a web page


def han_of(text: str) -> str:
    return "".join(HAN.findall(text))


def is_subsequence(part: str, text: str) -> bool:
    characters = iter(text)
    return all(character in characters for character in part)


def test_planted_pages_keep_their_text_and_count_every_lost_character() -> None:
    draw = random.Random(20)
    removed: Counter[str] = Counter()
    for page_number in range(PAGES):
        paragraphs = paragraphs_of(draw)
        if draw.random() < 0.3:
            paragraphs[0] = f"第{draw.choice('一二三七')}回　风雪山神庙\n{paragraphs[0]}"
        planted = paragraphs
        for plant in sorted(draw.sample(PLANTS, draw.randint(1, 2)), key=PLANTS.index):
            planted = plant(draw, planted)
        text = "\n".join(planted)
        losses: Counter[str] = Counter()

        def watch(rule: str, before: Utf16Text, after: Utf16Text, losses: Counter[str] = losses) -> None:
            losses[rule] += len(han_of(decode_utf16(before))) - len(han_of(decode_utf16(after)))

        options = CleanOptions(boilerplate=("site-ads",) if draw.random() < 0.7 else ())
        page = Cleaner(profiles.PROFILES[profiles.for_text("auto", text)], options, watch).clean([text])
        documents = split_documents(page.array)
        output = "".join(title + document for title, document in zip(page.titles, documents, strict=True))
        size = page.input_size
        for name, effect in page.effects.items():
            size += effect.added - effect.removed
            assert losses[name] <= effect.removed, (name, page_number)
        assert size == page.size == sum(map(len, documents))
        titles = sum(len(han_of(title)) for title in page.titles)
        assert len(han_of(text)) == len(han_of("".join(documents))) + sum(losses.values())
        assert titles <= losses["headings"] + losses["container"]
        assert is_subsequence(han_of("".join(paragraphs)), han_of(output)), text
        removed.update(losses)
    assert {name for name, count in removed.items() if count} <= {
        *("headings", "site-ads", "unwrap", "shifted", "gaiji", "mojibake", "container", "notes")
    }
    assert min(removed["headings"], removed["site-ads"], removed["unwrap"], removed["shifted"], removed["gaiji"]) > 0
