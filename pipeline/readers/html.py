"""Read the text of web pages and of XHTML: one line per paragraph, without scripts, styles and navigation."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.errors import BadData
from pipeline.readers.content import Content
from pipeline.readers.documents import Document
from pipeline.readers.encoding import AUTO, EncodingStats, decode_blocks

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

DROPPED = (  # elements whose content is not text
    *("script", "style", "noscript", "template", "nav", "menu", "svg", "math", "iframe", "object", "canvas", "audio"),
    *("video", "button", "select", "textarea", "datalist", "rt", "rp"),
)
BLOCKS = frozenset(
    [
        *("address", "article", "aside", "blockquote", "body", "br", "caption", "center", "dd", "details", "dialog"),
        *("div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6"),
        *("header", "hgroup", "hr", "legend", "li", "main", "ol", "p", "pre", "search", "section", "summary", "table"),
        *("tbody", "tfoot", "thead", "tr", "ul"),
    ]
)
CELLS = ("td", "th")
_KEPT_SPACE = "\0"  # a space of preformatted text, while others are joined; markup has no NUL
_SPACE = re.compile(r"[ \t\n\f\r]+")  # not U+3000 and U+00A0, which indent paragraphs
_CHARSET = re.compile(rb"""<(?:meta|\?xml)\b[^>]*?\b(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_CHARSET_WINDOW = 1 << 12  # bytes
_SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030", "big5": "cp950", "iso8859-1": "cp1252", "ascii": "cp1252"}
# `<title/>` is an empty element in XHTML, but is not closed in HTML
_SELF_CLOSED = re.compile(
    r"<(title|script|style|textarea|iframe|p|div|span|a|i|b|em|td|th|li|ul|h[1-6])\b([^<>]*)/>", re.I
)


def read(content: Content, encoding: str = AUTO) -> Iterator[Document]:
    """Yield the page as one document. Raises BadData if it has no text or if its encoding is not detected."""
    document = page(b"".join(content.blocks), content.label, content.file, encoding)
    if not document.text:
        raise BadData(f"{content.label}: the page has no text", hint="remove it from the input")
    yield document


def page(data: bytes, label: str, file: str, encoding: str = AUTO) -> Document:
    """Return a page as a document. Its title is the first heading, else the title of the page."""
    from selectolax.lexbor import LexborHTMLParser

    markup = _decode(data, label, encoding)
    tree = LexborHTMLParser(_SELF_CLOSED.sub(r"<\1\2></\1>", markup))
    title = tree.css_first("title")
    heading = tree.css_first("h1, h2, h3")
    tree.strip_tags([*DROPPED, "[role=navigation]", "[hidden]"])
    titles = (_one_line(node.text()) for node in (heading, title) if node)
    text = _text(tree.body) if tree.body else ""
    return Document(text, next(filter(None, titles), ""), file=file)


def _decode(data: bytes, label: str, encoding: str) -> str:
    """Return the markup: UTF-8 if it is valid, else in the encoding that it declares, else in the detected one."""
    if encoding == AUTO and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        declared = _CHARSET.search(data[:_CHARSET_WINDOW])
        names = ["utf-8-sig", declared[1].decode("ascii") if declared else ""]
        for name in filter(None, names):
            try:
                name = codecs.lookup(name).name
                return data.decode(_SUPERSETS.get(name, name)).replace("\0", "")
            except (LookupError, UnicodeDecodeError):
                continue
    return "".join(decode_blocks(iter([data]), label, EncodingStats(), encoding=encoding, strict=True))


def _text(body: LexborNode) -> str:
    """Return the text of an element, one line per paragraph. Nesting may be of any depth."""
    parts: list[str] = []
    node: LexborNode | None = body
    in_pre = 0
    while node is not None:
        _open(node, parts, is_preformatted=in_pre > 0)
        if child := node.first_child:
            in_pre += node.tag == "pre"
            node = child
            continue
        while node is not None and node.mem_id != body.mem_id and not node.next:
            node = node.parent
            _close(node, parts)
            in_pre -= node is not None and node.tag == "pre"
        node = node.next if node is not None and node.mem_id != body.mem_id else None
    lines = (_trim(line) for line in "".join(parts).split("\n"))
    return "\n".join(line.replace(_KEPT_SPACE, " ") for line in lines if line.strip(_KEPT_SPACE).strip())


def _open(node: LexborNode, parts: list[str], *, is_preformatted: bool) -> None:
    if node.tag == "-text":
        text = node.text_content or ""
        parts.append(text.replace(" ", _KEPT_SPACE) if is_preformatted else _SPACE.sub(" ", text))
    elif node.tag in BLOCKS:
        parts.append("\n")
    elif node.tag in CELLS:
        parts.append(" ")


def _close(node: LexborNode | None, parts: list[str]) -> None:
    if node is not None and node.tag in BLOCKS:
        parts.append("\n")


def _trim(line: str) -> str:
    """Return a line without the spaces around it that HTML does not show, runs of them as one."""
    return line.strip(" \t\r\f") if "  " not in line else re.sub(" {2,}", " ", line).strip(" \t\r\f")


def _one_line(text: str) -> str:
    return " ".join(text.split())
