"""HTML in texts that are not web pages: fragments with tags such as `<p>` and `<br>`, from web sites or EPUB books.

A web page has a reader of its own, pipeline/readers/html.py. In a fragment line ends are text, except within an element
that is closed, such as `<p>…</p>`.
"""

from __future__ import annotations

from html.parser import HTMLParser

from pipeline.clean.lazy_pattern import lazy_pattern
from pipeline.clean.markup import entities
from pipeline.clean.markup.parsed import MAX_NOTE, Parsed, add_count
from pipeline.clean.rule import Counts
from pipeline.clean.rules import headings
from pipeline.readers.html import BLOCKS, CELLS, DROPPED

_LINES = frozenset((*BLOCKS, *CELLS))  # elements on lines of their own; spaces between cells would be deleted
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_PARAGRAPHS = ("p", "li", "dt", "dd", "td", "th", "caption")  # whose line ends are spaces
_INLINE = (
    *("a", "b", "big", "code", "del", "em", "font", "head", "html", "i", "img", "ins", "link", "meta", "s", "small"),
    *("span", "strike", "strong", "sub", "sup", "tt", "u", "script", "style", "title"),
)
_KNOWN = {f"<{name}>" for name in (*_LINES, *_INLINE)}
_MIN_TAGS, _MIN_TAG_RATIO = 3, 0.001  # of a text that is HTML: tags, and tags per character
_MAX_UNCLOSED = 100  # unclosed tags and comments after which the remainder is text
_BREAK, _AMPERSAND = "\x01", "\0"  # characters that no text contains at this point
_LINE_END = lazy_pattern(r"[ \t]*\n(?![\u3000\u00a0])[ \t]*")


def is_html(head: str) -> bool:
    """Return True if a text that begins with `head` is HTML: it has enough tags with names of HTML."""
    if head.count("<") < _MIN_TAGS and head.count("&lt") < _MIN_TAGS:
        return False
    counts: Counts = Counts()
    html(head, counts)
    tags = sum(count for name, count in counts.items() if name in _KNOWN)
    return tags >= max(_MIN_TAGS, _MIN_TAG_RATIO * len(head))


def html(text: str, counts: Counts) -> Parsed:
    """Remove tags, comments, scripts and styles: `<br>` and the ends of blocks are line ends, `<h2>` is a heading.

    References are replaced first, so that tags written as `&lt;br&gt;` are found. A tag that is not closed is text.
    """
    parser = _Parser(counts)
    remainder = entities.unescape(text, counts).replace("&", _AMPERSAND)
    for _ in range(_MAX_UNCLOSED):
        parser.feed(remainder)
        if not parser.rawdata:
            break
        remainder = parser.rawdata[1:]
        parser.restart()
    else:
        parser.parts.append(remainder)
    marked = "".join(parser.parts).replace(_AMPERSAND, "&")
    lines = (line.strip(" \t") for line in marked.replace(_BREAK, "\n").split("\n"))
    return Parsed("\n".join(filter(None, lines)) if parser.has_tags else marked, parser.title)


class _Parser(HTMLParser):
    """Collects the text of HTML in `parts`, with _BREAK where markup ends a line.

    `_open` are the elements that are changed once they are closed, with the number of parts before each.
    """

    def __init__(self, counts: Counts) -> None:
        super().__init__(convert_charrefs=False)
        self.parts: list[str] = []
        self.title, self.has_tags = "", False
        self._counts = counts
        self._open: list[tuple[str, int]] = []

    def restart(self) -> None:
        """Take the first character of the unread markup as text."""
        self.parts.append(self.rawdata[:1])
        add_count(self._counts, "unclosed <", self.rawdata[:1] == "<")
        self.rawdata = ""
        self.clear_cdata_mode()

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        source = self.get_starttag_text() or ""
        if len(source) > MAX_NOTE or not all(name.isascii() and "<" not in name for name, _ in attrs):
            self._counts["unclosed <"] += 1
            self.parts.append(source)
            return
        self._count(tag)
        if tag in _LINES:
            self.parts.append(_BREAK)
        if tag in _PARAGRAPHS or tag in _HEADINGS or tag in DROPPED or tag == "title":
            self._open.append((tag, len(self.parts)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        depth = len(self._open)
        self.handle_starttag(tag, attrs)
        del self._open[depth:]

    def handle_endtag(self, tag: str) -> None:
        self._count(tag)
        index = next((index for index in reversed(range(len(self._open))) if self._open[index][0] == tag), None)
        if index is not None:
            start = self._open[index][1]
            content = "".join(self.parts[start:])
            del self._open[index:], self.parts[start:]
            self.parts.append(self._closed(tag, content))
        if tag in _LINES:
            self.parts.append(_BREAK)

    def handle_comment(self, data: str) -> None:
        if len(data) > MAX_NOTE:
            self.parts.append(f"<!--{data}-->")
        else:
            self._counts["<!-- -->"] += 1
            self.has_tags = True

    def handle_decl(self, decl: str) -> None:
        self._count("!doctype")

    def handle_pi(self, data: str) -> None:
        self._count("?")

    def parse_pi(self, i: int) -> int:
        start = self.rawdata[i + 2 : i + 3]
        return super().parse_pi(i) if start.isascii() and start.isalpha() else self.parse_bogus_comment(i)

    def parse_bogus_comment(self, i: int, report: bool = True) -> int:
        """Take the `<` of `</甲>` and `<!甲>` as text."""
        self.handle_data("<")
        return i + 1

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Take the content of `<![CDATA[…]]>` as text, and drop marks such as `<![endif]>`."""
        is_text = self.rawdata.startswith("<![CDATA[", i)
        close = "]]>" if is_text else ">"
        end = self.rawdata.find(close, i)
        if end < 0:
            return -1
        if not is_text and not self.rawdata[i:end].isascii():
            return self.parse_bogus_comment(i)
        self._count("![")
        self.parts.append(self.rawdata[i + 9 : end] if is_text else "")
        return end + len(close)

    def _count(self, tag: str) -> None:
        self._counts[f"<{tag}>"] += 1
        self.has_tags = True

    def _closed(self, tag: str, content: str) -> str:
        """Return what remains of the content of an element."""
        if tag in _PARAGRAPHS:
            return _LINE_END.sub(" ", content)
        line = " ".join(content.replace(_BREAK, " ").split())
        if tag in _HEADINGS:
            self.title = self.title or line
            needs_mark = headings.parse_heading(f"# {line}") and not headings.parse_heading(line)
            return f"# {line}" if needs_mark else line
        self._counts[f"characters of <{tag}>"] += len(content)
        if tag == "title":
            self.title = self.title or line
        return ""
