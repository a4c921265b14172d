"""Site ads: what a website adds to a book that it publishes. Counted by default, removed with `--boilerplate site-ads`.

    请收藏本站：https://www.example.com      notices: the site's name, navigation, downloads, pleas for votes
    Ww w.exa mpletxT.ne t                    addresses, also with blanks and marks between the letters
    更新时间:2007-11-16 本章字数:4804         the time and size of a chapter
    read_middle();                           calls of the site's scripts, treated as addresses
    ------------, ☆☆☆                        lines of marks

A line of ads goes with its line end. In other lines only the ad goes: its sentence, or its bracket （未完待续）, or the
address alone. Words are compared in full-width and half-width, simplified and traditional form alike, without blanks
and marks. Lines of marks are removed, but not counted as ads: many books separate scenes by them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache

import numpy as np

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.rule import Counts, Rule
from pipeline.clean.rules import headings
from pipeline.clean.utf16 import (
    BLANKS,
    HAN,
    LINE_ENDS,
    SENTENCE_ENDS,
    UNIT_COUNT,
    Utf16Text,
    decode_utf16,
    encode_utf16,
    is_one_of,
    positions_of,
    units_at,
)

NAME = "site-ads"
LEFT = "left: "  # prefix of the counted ads that are not removed
_MAX_LISTED = 20  # most frequent ads of a page that are counted one by one
OTHERS = "other ads"
_EXCERPT = 24  # characters of an ad in the report
_LONG_LINE = 2000  # units: a longer line is a chapter: only its sentences with ads are examined
_REACH = 300  # units around a word of an ad in a long line
_LEAST_SHARE = 0.4  # of the letters of a sentence: with more of them in notices, all of it goes
_MAX_SITE_NAME = 12  # letters beside an address that may be the name of the site

# The characters of the patterns below that have another form in traditional script
_TRADITIONAL = (
    "業絲個臨爲為舉習書買於僅們衆眾會傳關內幾擊刪盧參發號後員壇處備復學對盡廣庫開張彈歸錄戶掃報數齋無時機權來樓歡沒瀏點獻"
    "現電筆籤紅結給繼續網羣腦節薦獲觀覽訂記論訪評試誤說説請讀謝購費資賞轉載進裏裡錯鍵問間閣閱閲陸頁頂須預領飛館鮮藏址簽製"
)
_SIMPLIFIED = (
    "业丝个临为为举习书买于仅们众众会传关内几击删卢参发号后员坛处备复学对尽广库开张弹归录户扫报数斋无时机权来楼欢没浏点献"
    "现电笔签红结给继续网群脑节荐获观览订记论访评试误说说请读谢购费资赏转载进里里错键问间阁阅阅陆页顶须预领飞馆鲜藏址签制"
)
_TO_SIMPLIFIED = str.maketrans(_TRADITIONAL, _SIMPLIFIED)

# Notices, as letters and digits, with a line end for each comma. A notice of a pattern has one of the words before it,
# so only the patterns of the words in a text are compiled. No word begins with another one, or `_WORD` would miss it.
# Each alternative contains one of the pairs below.
_NOTICES = {
    "收藏": r"请(?:(?:您|大家|记得|点击)?收藏(?=本|此|我们|网|一下|[a-z0-9])|(?:大家|记得|点击)?收藏$)"
    r"|记得收藏(?=本|我们|网|书|哦|[a-z0-9])|求收藏|收藏(?:好)?(?:本|此|我们)?(?:站|网站|网址|本书)",
    "本站": r"(?:记住|来自|访问|登[录陆])本站|关注本站(?=$|最新)"
    r"|本站(?:地址|网址|域名|最新|手机|首发|小说|收录|永久|(?:所有|提供).{0,8}(?:小说|内容|章节|资源|作品|电子书|下载))",
    "一秒": r"一秒记住(?=\n|$|本|.{0,16}(?:[网站阁吧]|小说|[a-z0-9]))",
    "网址 域名": "(?:最新|备用|永久|请记住|官方|首发)(?:网址|域名)",
    "未完 继续": "本章未完|未完待续(?!的)|点击(?:下一[页章])?继续阅|下一[页章]继续[阅观]?[读看]",
    "书签 书架": "加入书[签架]|(?:推荐|投票|放入|存)书[签架]|下次打开书架",
    "用户 手机": "(?:手机|平板|电脑)用户(?:请|可以?(?:浏览|访问|登[录陆])|浏览|访问|登[录陆]|[a-z0-9])"
    r"|用户上传(?=$|\n|整)|手机版(?:阅读|访问|网址|地址)(?=[a-z0-9]|$|网址|地址|请)"
    "|手机(?:阅读|看书|访问)(?:请|本|网址|地址|[a-z0-9])",
    "弹窗 广告 方便": "无弹窗|无广告(?!的)|方便(?:下次|以后)阅读",
    "更新": r"首发更新|最快更新(?=.{0,24}(?:章节|小说)|[a-z0-9]|$)|更新(?:速度)?最快"
    r"|更新时间.{0,30}字数|更新时间\d{2,4}",
    "无错 章": "无错(?:章节|小说)|章节(?:内容|正文)(?:开始|结束)|章节(?:列表|报错)|章节错误.{0,2}点|校正章节|本章字数"
    "|最新章节(?:请|尽在|全文|列表|目录|阅读|更新|免费|版)",
    "全文": "全文字(?:请|尽在|全文|列表|目录|阅读|更新|免费|版)|全文(?:免费)?阅读(?=最新|请|网|尽|[a-z0-9]|$)",
    "免费 下载": "免费(?:小说|阅读|全本)(?:网|站|请|尽在)|免费下载(?=txt|[a-z0-9]|尽在|本书|地址)"
    r"|请.{0,6}下载.{0,16}删除|(?:txt|全本(?:书籍)?|全集|电子书|小说)(?:免费|全集)?下载(?=$|\n|[a-z0-9地网站请更]|尽在)"
    "|下载(?:txt(?!文|格)|全集|本书)",
    "键返 键进 消息给 刷新页 在手打 内": "键(?:返回|进入)(?:书目|目录|上一页|下一页)|消息给管理员|请(?:重新)?刷新页面"
    "|正在手打|(?:24|二十四)小时(?:之)?内(?:请|自行|必须)?删除",
    "正版": "请.{0,14}购买正版|请.{0,14}支持正版|正版(?:订阅|阅读)",
    "版权": "(?:内容|作品|小说|本书)版权归.{0,10}所有|版权归(?:原|.{0,6}[网站]).{0,8}所有|版权所有(?!者|权|的)",
    "报错 举错 举报 报报 网友": "点此[举报][报错]|由?网友(?:上传|收集整理)(?!的|了|到)",
    "仅供 商业 转载": "仅供(?:网友|书友|试读|预览|(?:读者|个人)?(?:学习|欣赏|交流|预览|试读)(?!参))"
    "|(?:不得|请勿)用[作于]商业|转载请(?:注明|保留)",
    "由": "[书文集说版]由.{0,24}(?:收集整理|整理(?:制作|上传|提供|下载|收集)|制作上传|手打)"
    "|[书文集说版]由.{0,16}(?:网|吧|论坛|书[屋社库城]|[a-z]{3}|网友|会员|用户|为您).{0,12}(?:制作|整理|提供|上传|收集|下载|首发|扫描|校对)",
    "更多": "更多(?:更好)?(?:好书|好看|精彩|小说|电子书|免费|全本|最新|章节|全集)(?s:.{0,16})"
    "(?:访问|请(?:到|进|继续|浏览)|尽在(?:本|.{0,12}[网站吧阁a-z0-9])|关注|登[录陆]|下载)",
    "票 求推 订阅 打赏 鲜花": r"(?<![请要需追])求(?:月票|推荐票|推荐(?=$|收|订|月)|订阅|打赏|红票|鲜花)"
    r"|[投给](?:张|点|几张)?(?:推荐票|月票|红票)|感谢(?![他她]).{0,24}(?:打赏|月票|推荐票)|打赏.{0,4}\d",
    "更送 更奉 更献 天第 日第": r"第[一二三四五六七八九十\d]{1,3}更(?:送上|奉上|献上)"
    r"|今[天日]第[一二三四五六七八九]更(?=$|\n|求|完|来)",
    "群": r"(?:书友|读者|粉丝|qq)群号?\d{5}",
    "公众号": r"关注(?:微信|官方|我们?的?|作者|本站)*公众号(?!的|文章|[里中上和很])"
    r"|公众号(?s:.{0,16})(?:回复.{1,16}(?:获取|领取|查看|阅读)|搜索.{0,8}关注)",
    "首发 手打 网更 网欢": "(?:小说|文学|读书|中文|书)网(?:首发|手打|更新|欢迎)|(?:文字|小说)首发(?!明|现|表|式)"
    "|首发(?:网站|网址|更新)|手打(?:更新|首发|文字|版)",
    "荐 笔趣 书包网 飞卢": "向[你您](?s:.{0,28})推荐(?:本书|哦)|笔趣阁|书包网(?!住|兜|袋)|飞卢(?:小说网|提醒)",
    "尽在 首页": "尽在.{1,10}网$|尽在起点|^首页.{0,12}(?:小说|文学|目录|书库)",
    "百度 谷歌 欢迎": r"(?:百度|谷歌)(?:一下|里?搜索).{0,12}(?:(?:小说|文学|读书|看书|中文|书)网|最新章节)"
    r"|欢迎(?:广大)?(?:书友|读者).{0,8}(?:光临(?!寒|指)|访问|阅读)",
    "上一": r"上一[章页回节篇]第.{1,30}下一[章页回节篇](?:第|没有|目录|$)",
}
_PATTERN_OF = {
    word: pattern
    for words, pattern in ((words, lazy_pattern(notices)) for words, notices in _NOTICES.items())
    for word in words.split()
}
_WORD = lazy_pattern(f"(?=[{''.join(word[0] for word in _PATTERN_OF)}])(?=({'|'.join(_PATTERN_OF)}))")
_NAVIGATION = lazy_pattern(  # links, if a clause or line has nothing else
    "(?:上一[章页回节篇]|下一[章页回节篇]|返?回(?:目录|书页|首页|列表|书目|章节|顶部)|返回|目录|章节|列表|首页|书架|书签|加入|推荐票?|投票?|评论|本书)+"
    "|本章完"
)
_PAIRS = re.findall(  # of neighbouring characters; a text without them has no notice
    "..",
    "收藏本站秒记网址域名章未待续击下击继页继章继书签书架用户机版机阅机看机访弹窗广告更新新最新章免费文阅章节"
    "章字章完户上尽在首页内删下载正版版权网友仅供商业载请书由文由集由说由版由更多月票荐票求推订阅打赏红票友群"
    "者群丝群q群Q群文网书网说网学网首发手打上一返回回目笔趣书包百度谷歌迎书迎读迎广文字此举飞卢鲜花更送更奉更献公众内请行删须删天第日第无错此报次阅后阅开书荐本荐哦给管刷新键返键进",
)

# Addresses, in lower case. Between the letters of some may be anything but Han, stops and line ends.
_SITES = "笔趣阁|书包网|飞卢小说网|起点中文网|顶点小说网?|飘天文学网?"
_OPENING, _CLOSING = "（(【[『「〔《<{", "）)】]』」〕》>}"
_CLOSING_QUOTES = "”’」』"
_BRACKETS = re.escape(_OPENING + _CLOSING)
_GAP = r"[^\w\n，！？；“”]{0,3}"
_DOMAINS = "com|net|org|cn|cc|info|tw|hk|la|me|xyz|top|vip|club|tv|co|biz"
_SPACED_DOMAINS = "|".join(_GAP.join(name) for name in ("com", "net", "org", "cn", "cc"))
_PATH = r"(?::\d+)?(?:/[a-z0-9./_\-~?=&%#]*)?"
_ADDRESS = lazy_pattern(
    rf"(?:(?:{_SITES})[ :]*)?(?:https?\s*:\s*/\s*/[a-z0-9./_\-~?=&%#:]+"
    rf"|(?<![a-z0-9.@\-])(?:[a-z0-9\-]+\.)+(?:{_DOMAINS})(?![a-z0-9]){_PATH}"
    rf"|(?<![a-z])w{_GAP}w{_GAP}w(?!w)"  # with a name in letters or Han, or cut off
    rf"(?:[^\n，！？；“”]{{0,40}}?[.。点·,]{_GAP}(?:{_SPACED_DOMAINS})(?![a-z]){_PATH}|[^\n,。!?;“”{_BRACKETS}\u3400-\U0003ffff]*)"
    rf"|(?<![a-z0-9])(?:[a-z0-9] ){{0,24}}[a-z0-9]{{1,24}} ?[.点] ?(?:c o ?m|co m)(?![a-z]){_PATH}"
    r"|(?<![a-z0-9_.])[a-z_]{0,12}(?:read|style|chap|show|theme|mid|bottom|top|txt|ads?_)[a-z0-9_]{0,12}\(['\"a-z0-9_]{0,16}\);)"
)
_W = "wWｗＷⓦⓌ"
_MAX_WWW = 12  # units from the first w to the third
_SITE = lazy_pattern(
    "^欢迎[您你]|[站网书阁版址载访]|txt|小说|手机|整理|制作|来源|出处|首发|电子|更多|阅读|文学|[吧屋城库楼坊斋馆社家]$"
)

_NOT_LETTERS = lazy_pattern(f"[^{HAN}a-z0-9\\n]+")
_COMMA_TO_LINE_END = dict.fromkeys(map(ord, "，,；;、"), "\n")  # no notice goes beyond one
_HAN, _LATIN = lazy_pattern(f"[{HAN}]"), lazy_pattern("[a-z]")
_SENTENCE = lazy_pattern(r"[^。！？!?…]*[。！？!?…]*[”’」』）)】\]]*")
_SPEECH, _SPOKEN = lazy_pattern("[“「][^“”「」]*[。!?,…][”」]"), "言"  # and a character that no notice has
_CLAUSE = lazy_pattern(r"[^，,；; \t\u3000]*[，,；; \t\u3000]*")
_BRACKETED = lazy_pattern(f"[{re.escape(_OPENING)}]([^{_BRACKETS}]{{2,120}})[{re.escape(_CLOSING)}]")
_LINE_END_UNITS = [ord(unit) for unit in LINE_ENDS]
_MARKS = "-=_*＊☆★◇◆~～#＝－─━—→←╔╗╚╝║═│┌┐└┘├┤┼+＋|｜^"
_MARK_LINE = lazy_pattern(rf"[{BLANKS}]*(?:[{_MARKS}][{BLANKS}]*){{3,}}")


def rule(*, remove: bool) -> Rule:
    """Return the rule that removes site ads, or only counts them, for the warning that names the option."""

    def apply(page: Utf16Text, counts: Counts) -> Utf16Text:
        ads: Counter[str] = Counter()
        pieces, copied = [], 0
        for start, end in _stretches(page, _candidates(page, with_marks=remove)):
            text = decode_utf16(page[start:end])
            if remove and _MARK_LINE.fullmatch(text):
                counts["lines of marks"] += 1
                remainder = ""
            else:
                remainder = strip_ads(text, ads)
            if remove and remainder != text:
                pieces += [page.units[copied:start], encode_utf16(remainder).units]
                is_line = not remainder and (not start or page.units[start - 1] in _LINE_END_UNITS)
                copied = end + (is_line and end < len(page) and page.units[end] == ord("\n"))
        _count(ads, counts, "" if remove else LEFT)
        return Utf16Text(np.concatenate([*pieces, page.units[copied:]])) if pieces else page

    return Rule(NAME, apply)


def strip_ads(text: str, ads: Counter[str]) -> str:
    """Return a line, or sentences of one, without ads, which are added to `ads`: "" if nothing but ads is left."""
    remainder, previous = text, ""
    has_address = False
    while remainder != previous:  # removing one may join the parts of another
        previous = remainder
        folded, addresses = _mask_addresses(_fold(remainder))
        folded = _mask_speech(folded, addresses)
        if not addresses and not any(map(_is_notice, _SENTENCE.findall(folded))):
            break
        has_address = has_address or bool(addresses)
        spans = _bracketed_notices(folded, addresses) or _notices(folded, addresses, is_heading=_is_heading(remainder))
        for start, end in reversed(spans):
            remainder = remainder[:start] + remainder[end:]
    if remainder == text:
        return text
    folded = _fold(remainder).strip()
    is_site = has_address and _count_letters(folded) <= _MAX_SITE_NAME and _SITE.search(folded)
    if not _HAN.search(remainder) or (is_site and not _is_heading(remainder)):
        remainder = ""
    ads[_excerpt(text, remainder)] += 1
    return remainder


def _bracketed_notices(folded: str, addresses: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the brackets that hold a notice or an address."""
    brackets = list(_BRACKETED.finditer(folded))
    is_address = [any(match.start() < start < match.end() for start, _ in addresses) for match in brackets]
    return [match.span() for match, masked in zip(brackets, is_address, strict=True) if masked or _is_notice(match[1])]


def _notices(folded: str, addresses: list[tuple[int, int]], *, is_heading: bool) -> list[tuple[int, int]]:
    """Return the sentences and clauses that are notices, and the addresses outside of them."""
    spans: list[tuple[int, int]] = []
    for sentence in _SENTENCE.finditer(folded):
        clauses = [clause for clause in _CLAUSE.finditer(folded, *sentence.span()) if clause[0]]
        notices = [clause for clause in clauses if _is_notice(clause[0])]
        if not notices and not _is_notice(sentence[0]):
            continue
        ads = [clause[0] for clause in clauses if clause in notices or _is_masked(clause, addresses)]
        size = sum(map(_count_letters, ads))
        if not is_heading and (not notices or size >= _LEAST_SHARE * _count_letters(sentence[0])):
            notices = [sentence]
        elif notices:  # the time of day after a date
            notices += [
                clause for clause in clauses if clause.start() > notices[0].start() and not _HAN.search(clause[0])
            ]
        spans += [match.span() for match in notices]
    outside = [span for span in addresses if not any(start <= span[0] < end for start, end in spans)]
    return sorted({*spans, *outside})


def _is_masked(clause: re.Match[str], addresses: list[tuple[int, int]]) -> bool:
    """Return True for a clause that is nothing but an address."""
    return not _HAN.search(clause[0]) and any(clause.start() <= start < clause.end() for start, _ in addresses)


def _mask_addresses(folded: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the text with each address replaced by as many letters, and the bounds of the addresses."""
    if not _LATIN.search(folded):
        return folded, []
    spans = [match.span() for match in _ADDRESS.finditer(folded)]
    return _ADDRESS.sub(lambda match: "a" * len(match[0]), folded) if spans else folded, spans


def _mask_speech(folded: str, addresses: list[tuple[int, int]]) -> str:
    """Return the text with quoted speech replaced, unless it holds an address: “求月票！” is not an ad."""

    def mask(match: re.Match[str]) -> str:
        has_address = any(match.start() < start < match.end() for start, _ in addresses)
        return match[0] if has_address else _SPOKEN * len(match[0])

    return _SPEECH.sub(mask, folded)


def _fold(text: str) -> str:
    """Return the text in lower case, half width and simplified form, with as many characters as before."""
    folded = unicodedata.normalize("NFKC", text) if not text.isascii() else text
    if len(folded) != len(text):
        variants = [(character, unicodedata.normalize("NFKC", character)) for character in text]
        folded = "".join([variant if len(variant) == 1 else character for character, variant in variants])
    lower = folded.lower()
    return (lower if len(lower) == len(folded) else folded).translate(_TO_SIMPLIFIED)


def _is_notice(text: str) -> bool:
    letters = _NOT_LETTERS.sub("", text.translate(_COMMA_TO_LINE_END))
    words = {*_WORD.findall(letters)}
    return any(_PATTERN_OF[word].search(letters) for word in words) or bool(_NAVIGATION.fullmatch(letters))


def _count_letters(text: str) -> int:
    return len(_NOT_LETTERS.sub("", text))


def _is_heading(text: str) -> bool:
    return headings.parse_heading(text, is_complete=len(text) < _LONG_LINE) is not None


def _excerpt(text: str, remainder: str) -> str:
    """Return the ad for the report: the text of which `remainder` is left, with all numbers as 0."""
    start = next((index for index, (a, b) in enumerate(zip(text, remainder, strict=False)) if a != b), len(remainder))
    end = len(text) - (len(remainder) - start)
    return re.sub(r"\d+", "0", " ".join(text[start:end].split()))[:_EXCERPT]


def _count(ads: Counter[str], counts: Counts, prefix: str) -> None:
    """Count the most frequent ads of a page one by one, and the others together."""
    ranked = sorted(ads.items(), key=lambda item: (-item[1], item[0]))
    for ad, count in ranked[:_MAX_LISTED]:
        counts[prefix + ad] += count
    if rest := sum(count for _, count in ranked[_MAX_LISTED:]):
        counts[prefix + OTHERS] += rest


# Where to look


def _candidates(page: Utf16Text, *, with_marks: bool) -> np.ndarray:
    """Return the sorted positions of the pairs of notices, of parts of addresses, and of marks that begin a line."""
    hashes = _hash(page.units[:-1], page.units[1:])
    pairs = np.flatnonzero(_pair_table().take(hashes))
    codes = _codes(page.units[pairs], page.units[pairs + 1])
    pairs = pairs[_pair_codes().take(np.searchsorted(_pair_codes(), codes), mode="clip") == codes]
    is_common = (page.units[pairs] == ord("上")) & ~is_one_of(units_at(page, pairs + 2), "章页頁回节節篇")
    pairs = pairs[~is_common]
    w = positions_of(page, _W)
    is_triple = w[2:] - w[:-2] <= _MAX_WWW
    dots = positions_of(page, ".．")
    dots = dots[_is_letter(units_at(page, dots + 1 + is_one_of(units_at(page, dots + 1), BLANKS)))]
    others = positions_of(page, "/)")
    others = others[is_one_of(units_at(page, others + 1), "/;；")]
    parts = [pairs, w[:-2][is_triple] if len(w) > 2 else w[:0], dots, others]
    if with_marks:
        marks = positions_of(page, _MARKS)
        parts.append(marks[is_one_of(units_at(page, marks - 1), LINE_ENDS + BLANKS)])
    return np.sort(np.concatenate(parts))


def _stretches(page: Utf16Text, at: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the lines that contain one of the positions `at`; of long lines, of sentences around it."""
    if not len(at):
        return
    line_ends = np.append(positions_of(page, LINE_ENDS), len(page))
    done = 0
    for position in at.tolist():
        if position < done:
            continue
        line = int(np.searchsorted(line_ends, position))
        start, end = int(line_ends[line - 1]) + 1 if line else 0, int(line_ends[line])
        if end - start > _LONG_LINE:
            start, end = _around(page, position, max(start, done), end)
        yield start, end
        done = end


def _around(page: Utf16Text, position: int, start: int, end: int) -> tuple[int, int]:
    """Return the part of a long line around a position: up to a stop, or `_REACH` units, on each side.

    It holds the brackets around the position too, and begins after the quotes that close the sentence before it.
    """
    start, end = max(start, position - _REACH), min(end, position + _REACH)
    window, at = page.units[start:end], position - start
    stops = np.flatnonzero(is_one_of(window, SENTENCE_ENDS))
    index = int(np.searchsorted(stops, at))
    first = int(stops[index - 1]) + 1 if index else 0
    last = int(stops[index]) + 1 if index < len(stops) else len(window)
    while first < at and chr(window[first]) in _CLOSING_QUOTES:
        first += 1
    opened = list[int]()
    for bracket in np.flatnonzero(is_one_of(window, _OPENING + _CLOSING)).tolist():
        if chr(window[bracket]) in _OPENING:
            opened.append(bracket)
        elif opened and (opening := opened.pop()) < at <= bracket:
            first, last = min(first, opening), max(last, bracket + 1)
    return start + first, start + last


def _hash(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a hash of each pair of units, as uint16."""
    hashes: np.ndarray = first * np.uint16(31)
    hashes += second
    return hashes


def _codes(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    codes: np.ndarray = first.astype(np.uint32) << 16 | second
    return codes


@cache
def _pair_codes() -> np.ndarray:
    """Return the code of each pair in simplified, traditional and mixed form."""
    forms = {character: character for pair in _PAIRS for character in pair}
    for traditional, simplified in zip(_TRADITIONAL, _SIMPLIFIED, strict=True):
        forms[simplified] = forms.get(simplified, "") + traditional
    pairs = [a + b for first, second in _PAIRS for a in forms[first] for b in forms[second]]
    units = encode_utf16("".join(pairs)).units
    return np.sort(_codes(units[::2], units[1::2]))


@cache
def _pair_table() -> np.ndarray:
    """Return a mask over hashes: True for those of a pair."""
    table = np.zeros(UNIT_COUNT, bool)
    codes = _pair_codes()
    table[_hash((codes >> 16).astype("<u2"), codes.astype("<u2"))] = True
    return table


def _is_letter(units: np.ndarray) -> np.ndarray:
    letters: np.ndarray = (units | 0x20) - np.uint16(ord("a")) < 26
    return letters
