"""Read EPUB books: one document per item of the reading order that has text.

The format is that of W3C's EPUB 3.3: META-INF/container.xml names the package document, whose spine lists the items.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from posixpath import dirname, normpath
from urllib.parse import unquote
from xml.etree import ElementTree

from pipeline.errors import BadData
from pipeline.readers import html
from pipeline.readers.archives import ZipReader, zip_errors
from pipeline.readers.content import Content
from pipeline.readers.documents import Document

_CONTAINER, _ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html", "application/html")


def read(content: Content) -> Iterator[Document]:
    """Yield the documents of a book in reading order; `meta` holds its title as `book`, and its author.

    Raises BadData if the file is truncated or corrupt, encrypted, or has no text.
    """
    with zip_errors(content.label, "an EPUB book"), content.seekable() as file, zipfile.ZipFile(file) as archive:
        book = _Book(ZipReader(archive, content.label), content.label)
        number = 0
        for name in book.pages:
            document = html.page(book.require(name), f"{content.label}: {name}", content.file)
            if document.text:
                number += 1
                title = document.title if document.title != book.meta.get("book") else ""
                yield Document(document.text, title, book.meta or None, content.file, number)
    if not number:
        raise BadData(f"{content.label}: the book has no text", hint="a book of images? Remove it from the input")


class _Book:
    """The names of the pages of a book in reading order, and its title and author."""

    def __init__(self, members: ZipReader, label: str) -> None:
        self._members, self._label = members, label
        encrypted = self._encrypted()
        package = self._root_file()
        root = self._xml(package)
        manifest = {
            item.get("id", ""): item
            for item in root.iterfind("./{*}manifest/{*}item")
            if item.get("media-type") in _PAGES and "nav" not in item.get("properties", "").split()
        }
        self.pages: list[str] = []
        for reference in root.iterfind("./{*}spine/{*}itemref"):
            if (item := manifest.get(reference.get("idref", ""))) is not None:
                self.pages.append(_resolve(package, item.get("href", "")))
        if locked := encrypted & {*self.pages}:
            raise BadData(f"{label}: {min(locked)} is encrypted", hint="DRM? Only books without it can be read")
        names = {"book": "title", "author": "creator"}
        texts = {key: root.findtext(f"./{{*}}metadata/{{*}}{name}", "") for key, name in names.items()}
        self.meta = {key: " ".join(text.split()) for key, text in texts.items() if text.strip()}

    def require(self, name: str) -> bytes:
        """Return the content of a member. Raises BadData if it is missing."""
        if (data := self._members.read(name)) is None:
            raise BadData(f"{self._label}: {name} is missing from the book", hint="download the file again")
        return data

    def _xml(self, name: str) -> ElementTree.Element:
        try:
            return ElementTree.fromstring(self.require(name))
        except (ElementTree.ParseError, ValueError) as error:
            raise BadData(f"{self._label}: {name} is not XML: {error}", hint="download the file again") from None

    def _root_file(self) -> str:
        element = self._xml(_CONTAINER).find("./{*}rootfiles/{*}rootfile")
        if element is None or not element.get("full-path"):
            raise BadData(f"{self._label}: {_CONTAINER} names no package document", hint="download the file again")
        return element.get("full-path", "")

    def _encrypted(self) -> set[str]:
        if self._members.read(_ENCRYPTION) is None:
            return set()
        references = self._xml(_ENCRYPTION).iterfind(".//{*}CipherReference")
        return {unquote(reference.get("URI", "")) for reference in references}


def _resolve(package: str, href: str) -> str:
    """Return the name of the member that a link of the package document leads to."""
    path = unquote(href.partition("#")[0])
    return normpath(f"{dirname(package)}/{path}").lstrip("/")
