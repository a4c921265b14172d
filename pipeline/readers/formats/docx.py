"""Read Word documents (.docx): one line per paragraph of the body, without headers, footnotes and deleted text.

The format is that of ECMA-376, part 1, 17 (WordprocessingML).
"""

from __future__ import annotations

import zipfile
from xml.etree import ElementTree

from pipeline.errors import BadData
from pipeline.readers.archives import ZipReader, zip_errors
from pipeline.readers.content import Content
from pipeline.readers.documents import Document

_BODY = "word/document.xml"
_BREAKS = {"p": "\n", "br": "\n", "cr": "\n", "tab": "\t", "noBreakHyphen": "-"}  # by local name
_REPEATED = ("Fallback", "moveFrom")  # a text box again for old programs, and moved text at its old place


def read(content: Content) -> Document:
    """Return the document. Raises BadData if the file is truncated or corrupt, or has no text."""
    with zip_errors(content.label, "a Word file"), content.seekable() as file, zipfile.ZipFile(file) as archive:
        data = ZipReader(archive, content.label).read(_BODY)
    if data is None:
        raise BadData(f"{content.label}: {_BODY} is missing from the Word file", hint="save it again as .docx or .txt")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two for an encoding
        raise BadData(f"{content.label}: {_BODY} is not XML: {error}", hint="save it again as .docx or .txt") from None
    text = _text(root)
    if not text:
        raise BadData(f"{content.label}: the Word file has no text", hint="remove it from the input")
    return Document(text, file=content.file)


def _text(root: ElementTree.Element) -> str:
    for parent in list(root.iter()):
        for child in [child for child in parent if _local_name(child) in _REPEATED]:
            parent.remove(child)
    for properties in root.iterfind(".//{*}pPr"):
        properties.clear()  # its tabs are positions
    parts = []
    for element in root.iter():
        name = _local_name(element)
        parts.append((element.text or "") if name == "t" else _BREAKS.get(name, ""))
    lines = (line.rstrip() for line in "".join(parts).split("\n"))
    return "\n".join(lines).strip("\n")


def _local_name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
