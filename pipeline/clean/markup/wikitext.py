"""Wikisource texts: the subset of wikitext that its pages of old books use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup import entities
from pipeline.clean.markup.parsed import MAX_BLOCK, MAX_DEPTH, MAX_NOTE, Parsed, add_count, replace
from pipeline.clean.rule import Counts

_COMMENT_BODY = rf"<!--(?:(?!<!--|-->).){{0,{MAX_NOTE}}}-->"
_COMMENT = lazy_pattern(rf"^[ \t]*{_COMMENT_BODY}[ \t]*\n|{_COMMENT_BODY}", re.DOTALL | re.MULTILINE)
_REF = lazy_pattern(
    rf"<(ref|gallery)\b[^<>]{{0,200}}(?<!/)>(?:(?!</?(?:ref|gallery)\b).){{0,{MAX_NOTE}}}</\1>"
    r"|<(?:ref|references)\b[^<>]{0,200}/>",
    re.DOTALL | re.IGNORECASE,
)
_VARIANT = lazy_pattern(r"-\{([^{}\n]{0,300})\}-")
_LINK = lazy_pattern(r"\[\[([^][\n|]{0,300})((?:\|[^][|\n]{0,1000})*)\]\]")
_NOT_TEXT = lazy_pattern(r"[ \t]*(?:category|分類|分类|file|image|文件|檔案|圖像)[ \t]*:", re.IGNORECASE)
_LANGUAGE = lazy_pattern(r"[a-z]{2,3}:")
_PARAMETER = lazy_pattern(r"\{\{\{[^{}\n]{0,100}\}\}\}")
_URL = lazy_pattern(r"\[(?:https?:)?//[^][\s]{1,500}(?:[ \t]+([^][\n]{0,300}))?\]")
_BRACES = lazy_pattern(r"(\{\{|\}\})")
_TABLE_ENDS = lazy_pattern(r"(^[ \t:]*\{\|[^\n]*\n|^[ \t]*\|\}(?!\})[^\n]*(?:\n|\Z))", re.MULTILINE)
_BREAK = lazy_pattern(r"<br\b[^<>\n]{0,100}>\n?|</p>\n?|<hr\b[^<>\n]{0,100}>", re.IGNORECASE)
_ELEMENT = lazy_pattern(r"</?(?!ref\b)[A-Za-z][A-Za-z0-9]{0,20}(?:[ \t]+[^<>\n]{0,300})?/?>")
_SWITCH = lazy_pattern(r"__[A-Z]{3,30}__|'{2,5}|^-{4,}[ \t]*$", re.MULTILINE)
_LIST = lazy_pattern(r"^[:;*#]+[ \t]*", re.MULTILINE)
_WIKI_HEADING = lazy_pattern(r"^={1,6}[ \t]*([^=\n]+?)[ \t]*={1,6}[ \t]*$", re.MULTILINE)
_NOTES = {"*", "註", "注", "小註", "小注", "雙行註", "双行注", "sk notes", "annotation"}
_SHOW_FIRST = {  # templates that set their first argument in another type, or add a remark for browsers
    *("專", "专", "書", "书", "另", "另2", "yl", "!", "僻字", "pua", "annotate", "ruby", "propernoun", "tooltip"),
    *("c", "center", "right", "larger", "smaller", "large", "small", "nowrap", "bold", "underline", "u"),
    "block center",
}
_SHOW_LAST = {"lang", "color", "font", "size"}
_LOST = {"?", "缺字", "缺", "illegible"}
_NAVIGATION = {"previous", "next", "prev", "type", "portal", "shortcut", "edition", "wikipedia", "from"}


def wikitext_lite(text: str, counts: Counts) -> Parsed:
    """Parse the wikitext of Wikisource. Notes become （notes）, headings `==lines==`.

    A template is dropped unless it is known to show text. `{{:page}}` is only counted, since its text is on that page.
    """
    meta: dict[str, str] = {}
    text = replace(_COMMENT, text, "", "<!-- -->", counts)
    text = replace(_REF, text, "", "<ref>", counts)
    for _ in range(2):  # the caption of a picture may contain links
        text = replace(_LINK, text, _link, "[[]]", counts)
    text = replace(_URL, text, lambda url: url[1] or "", "[url]", counts)
    text = replace(_VARIANT, text, _variant, "-{}-", counts)
    text = replace(_PARAMETER, text, "", "{{{}}}", counts)
    text = _replace_nested(text, _BRACES, lambda inner: _template(inner, meta, counts), "{{", counts)
    text = _replace_nested(text, _TABLE_ENDS, lambda inner: _table(inner, counts), "{|", counts)
    text = replace(_BREAK, text, "\n", "<br>", counts)
    text = replace(_ELEMENT, text, "", "<tag>", counts)
    text = replace(_SWITCH, text, "", "'' __ ----", counts)
    text = replace(_LIST, text, "", ": * line", counts)
    text = _WIKI_HEADING.sub(r"==\1==", text)
    text = entities.unescape(text, counts)
    for mark in ("<!--", "<ref"):
        add_count(counts, f"unclosed {mark}", text.count(mark))
    title = meta.pop("title", "") or meta.get("section", "")
    return Parsed(text.strip("\n"), title, meta)


def _variant(match: re.Match[str]) -> str:
    """Return the text that a language variant shows.

    -{字}- shows 字, -{zh-hant:雲;zh-hans:云}- the traditional form, and -{T|…}- sets the page title, not text.
    """
    flags, bar, content = match[1].rpartition("|")
    if bar and {"T", "H", "-"} & {flag.strip() for flag in flags.split(";")}:
        return ""
    pairs = (form.partition(":") for form in content.split(";"))
    forms = {language.strip(): form.strip() for language, colon, form in pairs if colon}
    if not any(language.startswith("zh") for language in forms):
        return content
    traditional = (forms[language] for language in ("zh-hant", "zh", "zh-tw", "zh-hk") if language in forms)
    return next(traditional, next(iter(forms.values())))


def _link(match: re.Match[str]) -> str:
    target, label = match[1], match[2].rpartition("|")[2]
    if _NOT_TEXT.match(target) or (_LANGUAGE.match(target) and not label):
        return ""
    return label or target.rpartition(":")[2].strip("./")


def _replace_nested(
    text: str, marks: re.Pattern[str], replacement: Callable[[str], str | None], name: str, counts: Counts
) -> str:
    """Replace the text between matching marks, innermost first.

    If `replacement` returns None, the text and its marks stay. Unmatched marks stay too. Both are counted as unclosed.
    """
    levels: list[list[str]] = [[]]
    opened: list[str] = []
    for index, piece in enumerate(marks.split(text)):
        if index % 2 == 0:
            levels[-1].append(piece)
        elif piece.lstrip(" \t:").startswith("{") and len(levels) <= MAX_DEPTH:
            opened.append(piece)
            levels.append([])
        elif piece.lstrip(" \t").startswith(("}", "|")) and opened:
            mark, inner = opened.pop(), "".join(levels.pop())
            replaced = replacement(inner)
            add_count(counts, f"unclosed {name}", replaced is None)
            levels[-1].append(mark + inner + piece if replaced is None else replaced)
        else:
            counts[f"unclosed {name}"] += 1
            levels[-1].append(piece)
    add_count(counts, f"unclosed {name}", len(opened))
    return "".join(_flatten(levels, opened))


def _flatten(levels: list[list[str]], opened: list[str]) -> Iterator[str]:
    yield from levels[0]
    for mark, level in zip(opened, levels[1:], strict=True):
        yield mark
        yield from level


def _table(inner: str, counts: Counts) -> str | None:
    if len(inner) > MAX_BLOCK:
        return None
    counts["{|"] += 1
    return ""


def _template(inner: str, meta: dict[str, str], counts: Counts) -> str | None:
    """Return the text that a template shows, or None if it is too long to be a template. A header goes to `meta`."""
    name, *arguments = (part.strip() for part in inner.split("|"))
    name = name.lower()
    values = [argument.partition("=")[2] if re.match("[0-9]+=", argument) else argument for argument in arguments]
    if "header" in name and len(inner) <= MAX_BLOCK:
        counts["{{header}}"] += 1
        for key, equals, value in (argument.partition("=") for argument in arguments):
            if equals and value.strip() and key.strip() not in _NAVIGATION:
                meta.setdefault(key.strip().lower(), value.strip())
        return ""
    has_text = len(inner) <= MAX_BLOCK and bool(values)
    if name in _NOTES and has_text:
        counts["{{*|}}"] += 1
        return f"（{values[0]}）"
    if name in _SHOW_FIRST and has_text:
        counts[f"{{{{{name}|}}}}"] += 1
        return values[0]
    if name in _SHOW_LAST and has_text:
        counts[f"{{{{{name}|}}}}"] += 1
        return values[-1]
    if len(inner) > MAX_NOTE:
        return None
    counts["{{:page}}" if name.startswith(":") else f"{{{{{' '.join(name.split())[:20]}}}}}"] += 1
    return "□" if name in _LOST else ""
