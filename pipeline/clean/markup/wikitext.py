"""Wikisource texts: as much of wikitext as its pages of old books use."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator

from pipeline.clean.markup.parsed import BLOCK, DEPTH, NOTE, Parsed, count, drop, replace
from pipeline.clean.rule import Seen

_INSIDE = rf"<!--(?:(?!<!--|-->).){{0,{NOTE}}}-->"
_COMMENT = re.compile(rf"^[ \t]*{_INSIDE}[ \t]*\n|{_INSIDE}", re.DOTALL | re.MULTILINE)
_REF = re.compile(
    rf"<(ref|gallery)\b[^<>]{{0,200}}(?<!/)>(?:(?!</?(?:ref|gallery)\b).){{0,{NOTE}}}</\1>"
    r"|<(?:ref|references)\b[^<>]{0,200}/>",
    re.DOTALL | re.IGNORECASE,
)
_VARIANT = re.compile(r"-\{([^{}\n]{0,300})\}-")
_LINK = re.compile(r"\[\[([^][\n|]{0,300})((?:\|[^][|\n]{0,1000})*)\]\]")
_NO_TEXT = re.compile(r"[ \t]*(?:category|分類|分类|file|image|文件|檔案|圖像)[ \t]*:", re.IGNORECASE)
_LANGUAGE = re.compile(r"[a-z]{2,3}:")
_PARAMETER = re.compile(r"\{\{\{[^{}\n]{0,100}\}\}\}")
_URL = re.compile(r"\[(?:https?:)?//[^][\s]{1,500}(?:[ \t]+([^][\n]{0,300}))?\]")
_BRACES = re.compile(r"(\{\{|\}\})")
_TABLE_ENDS = re.compile(r"(^[ \t:]*\{\|[^\n]*\n|^[ \t]*\|\}(?!\})[^\n]*(?:\n|\Z))", re.MULTILINE)
_BREAK = re.compile(r"<br\b[^<>\n]{0,100}>\n?|</p>\n?|<hr\b[^<>\n]{0,100}>", re.IGNORECASE)
_ELEMENT = re.compile(r"</?(?!ref\b)[A-Za-z][A-Za-z0-9]{0,20}(?:[ \t]+[^<>\n]{0,300})?/?>")
_WORD = re.compile(r"__[A-Z]{3,30}__|'{2,5}|^-{4,}[ \t]*$", re.MULTILINE)
_LIST = re.compile(r"^[:;*#]+[ \t]*", re.MULTILINE)
_WIKI_HEADING = re.compile(r"^={1,6}[ \t]*([^=\n]+?)[ \t]*={1,6}[ \t]*$", re.MULTILINE)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#x[0-9a-fA-F]{1,6}|[a-z]{2,8});")
_NOTES = {"*", "註", "注", "小註", "小注", "雙行註", "双行注", "sk notes", "annotation"}
_SHOW_FIRST = {  # what they show, with a remark that only a browser shows, or set in another type
    *("專", "专", "書", "书", "另", "另2", "yl", "!", "僻字", "pua", "annotate", "ruby", "propernoun", "tooltip"),
    *(
        "c",
        "center",
        "right",
        "larger",
        "smaller",
        "large",
        "small",
        "nowrap",
        "bold",
        "underline",
        "u",
        "block center",
    ),
}
_SHOW_LAST = {"lang", "color", "font", "size"}
_LOST = {"?", "缺字", "缺", "illegible"}
_NAVIGATION = {"previous", "next", "prev", "type", "portal", "shortcut", "edition", "wikipedia", "from"}


def wikitext_lite(text: str, seen: Seen) -> Parsed:
    """The wikitext of Wikisource as far as texts need it; notes become （notes）, headings `==lines==`.

    A template is dropped, unless it is known to show a text. `{{:page}}` is only counted: its text is elsewhere.
    """
    meta: dict[str, str] = {}
    text = drop(_COMMENT, text, lambda _: "<!-- -->", seen)
    text = drop(_REF, text, lambda _: "<ref>", seen)
    for _ in range(2):  # the caption of a picture may hold links
        text = replace(_LINK, text, _link, "[[]]", seen)
    text = replace(_URL, text, lambda found: found[1] or "", "[url]", seen)
    text = replace(_VARIANT, text, _variant, "-{}-", seen)
    text = replace(_PARAMETER, text, "", "{{{}}}", seen)
    text = _nested(text, _BRACES, lambda inner: _template(inner, meta, seen), "{{", seen)
    text = _nested(text, _TABLE_ENDS, lambda inner: _table(inner, seen), "{|", seen)
    text = replace(_BREAK, text, "\n", "<br>", seen)
    text = replace(_ELEMENT, text, "", "<tag>", seen)
    text = replace(_WORD, text, "", "'' __ ----", seen)
    text = replace(_LIST, text, "", ": * line", seen)
    text = _WIKI_HEADING.sub(r"==\1==", text)
    text = replace(_ENTITY, text, lambda found: html.unescape(found[0]), "&entity;", seen)
    for mark in ("<!--", "<ref"):
        count(seen, f"unclosed {mark}", text.count(mark))
    title = meta.pop("title", "") or meta.get("section", "")
    return Parsed(text.strip("\n"), title, meta)


def _variant(found: re.Match[str]) -> str:
    """-{字}- shows 字, -{zh-hant:雲;zh-hans:云}- the traditional form, and -{T|…}- changes the title, not the text."""
    flags, bar, shown = found[1].rpartition("|")
    if bar and {"T", "H", "-"} & {flag.strip() for flag in flags.split(";")}:
        return ""
    forms = {
        name.strip(): form.strip() for name, colon, form in (each.partition(":") for each in shown.split(";")) if colon
    }
    if not any(name.startswith("zh") for name in forms):
        return shown
    traditional = (forms[name] for name in ("zh-hant", "zh", "zh-tw", "zh-hk") if name in forms)
    return next(traditional, next(iter(forms.values())))


def _link(found: re.Match[str]) -> str:
    target, shown = found[1], found[2].rpartition("|")[2]
    if _NO_TEXT.match(target) or (_LANGUAGE.match(target) and not shown):
        return ""
    return shown or target.rpartition(":")[2].strip("./")


def _nested(text: str, marks: re.Pattern[str], becomes: Callable[[str], str | None], name: str, seen: Seen) -> str:
    """The text with what stands between an opening and the closing mark nearest to it replaced, innermost first.

    `becomes` gives None for what has to stay. Marks without their partner stay too.
    """
    levels: list[list[str]] = [[]]
    opened: list[str] = []
    for number, piece in enumerate(marks.split(text)):
        if number % 2 == 0:
            levels[-1].append(piece)
        elif piece.lstrip(" \t:").startswith("{") and len(levels) <= DEPTH:
            opened.append(piece)
            levels.append([])
        elif piece.lstrip(" \t").startswith(("}", "|")) and opened:
            mark, inner = opened.pop(), "".join(levels.pop())
            replaced = becomes(inner)
            count(seen, f"unclosed {name}", replaced is None)
            levels[-1].append(mark + inner + piece if replaced is None else replaced)
        else:
            seen[f"unclosed {name}"] += 1
            levels[-1].append(piece)
    count(seen, f"unclosed {name}", len(opened))
    return "".join(_flat(levels, opened))


def _flat(levels: list[list[str]], opened: list[str]) -> Iterator[str]:
    yield from levels[0]
    for mark, level in zip(opened, levels[1:], strict=True):
        yield mark
        yield from level


def _table(inner: str, seen: Seen) -> str | None:
    if len(inner) > BLOCK:
        return None
    seen["{|"] += 1
    return ""


def _template(inner: str, meta: dict[str, str], seen: Seen) -> str | None:
    name, *arguments = (part.strip() for part in inner.split("|"))
    name = name.lower()
    plain = [each.partition("=")[2] if re.match("[0-9]+=", each) else each for each in arguments]
    if "header" in name and len(inner) <= BLOCK:
        seen["{{header}}"] += 1
        for key, equals, value in (each.partition("=") for each in arguments):
            if equals and value.strip() and key.strip() not in _NAVIGATION:
                meta.setdefault(key.strip().lower(), value.strip())
        return ""
    shown = len(inner) <= BLOCK and bool(plain)
    if name in _NOTES and shown:
        seen["{{*|}}"] += 1
        return f"（{plain[0]}）"
    if name in _SHOW_FIRST and shown:
        seen[f"{{{{{name}|}}}}"] += 1
        return plain[0]
    if name in _SHOW_LAST and shown:
        seen[f"{{{{{name}|}}}}"] += 1
        return plain[-1]
    if len(inner) > NOTE:
        return None
    seen["{{:page}}" if name.startswith(":") else f"{{{{{' '.join(name.split())[:20]}}}}}"] += 1
    return "□" if name in _LOST else ""
