"""Choose which field of a record is its text, and take the text out of it.

In this order: the fields that the user named; `text`, if it is a string; `messages` or `conversations`, which become
turns; a Chinese name of the text, such as 内容; the one string field that holds more than half of all characters in the
first records. Other records are refused with the names of their fields. A name may lead into nested objects:
`meta.body`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pipeline.errors import BadData
from pipeline.readers import chinese_poetry

TEXT = "text"
SAMPLE = 100  # records from which the field is chosen
_CHATS = ("messages", "conversations")  # of OpenAI, and of ShareGPT
QUESTIONS = ("instruction", "prompt", "question", "query")  # of conversations in two fields, such as those of Alpaca
ANSWERS = ("output", "completion", "response", "answer")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_CHINESE_TEXTS = ("内容", "內容", "正文", "原文", "全文", "文本", "诗文", "詩文", "诗句", "詩句")
_TITLES = (
    *("title", "题目", "題目", "标题", "標題", "诗题", "詩題", "诗名", "詩名", "篇名", "题名", "題名", "书名", "書名"),
)
_ORIGINS = {  # names of fields that become meta
    **dict.fromkeys(("author", "作者", "诗人", "詩人", "作家"), "author"),
    **dict.fromkeys(("dynasty", "朝代", "年代", "时代", "時代"), "dynasty"),
}
BESIDE_TEXT = frozenset(("meta", *_TITLES, *_ORIGINS))  # names of all fields that a document takes besides its text
_PROSE = ("desc", "description", "short_description", "summary")
_ABOUT = {  # names of fields about a text, never chosen by themselves
    *_TITLES,
    *_ORIGINS,
    *_PROSE,
    *("authors", "category", "cell_type", "date", "file", "filename", "id", "label", "lang", "language"),
    *("license", "link", "name", "path", "source", "split", "tags", "time"),
    *("timestamp", "topic", "type", "uri", "url", "uuid"),
}
_DEPTH = 4  # of nested objects
_NAMES_SHOWN = 12
_MUCH = 10  # a field has much text if it is at least a tenth as long as the text that is read
_CHAPTER = re.compile(  # names such as 第一回, 卷三, Chapter One, part_2, Book IV
    r"第\s*[0-9〇零一二三四五六七八九十百千两兩]+\s*[章回节節卷篇集部话話折幕]|卷之?[0-9一二三四五六七八九十百上中下]|"
    r"chapter\s+\w|(?:chapter|part|book|section|letter|canto|act|scene)[\W_]*(?:[0-9]+|[ivxlc]+\b)",
    re.IGNORECASE,
)
AS_CHAT = "clean --profile chat reads them as conversations"


RECORD = ("*",)
"""Names of fields that stand for the complete record, which becomes the `meta` of a document without text."""


@dataclass(frozen=True)
class FieldChoice:
    """The fields whose texts, joined by a blank line, are the document."""

    names: tuple[str, ...] = (TEXT,)

    @property
    def is_record(self) -> bool:
        """True if the record is read as it is, without a text."""
        return self.names == RECORD

    @property
    def is_plain(self) -> bool:
        """True if the text is the field `text` alone, as in a corpus."""
        return self.names == (TEXT,)

    def text_of(self, record: Mapping[str, Any]) -> str | None:
        """Return the text of a record, None if it has none of the fields."""
        if self.is_record:
            return ""
        parts = [text for name in self.names if (text := _as_text(_lookup(record, name))) is not None]
        if len(self.names) == 1:
            return parts[0] if parts else None
        return "\n\n".join(filter(None, parts)) if parts else None

    def __str__(self) -> str:
        return ("field " if len(self.names) == 1 else "fields ") + ", ".join(self.names)


def split_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of --text-field, given repeatedly or joined by commas, one by one."""
    return tuple(name.strip() for value in names for name in value.split(",") if name.strip())


def choose(records: Sequence[Mapping[str, Any]], requested: Sequence[str] = ()) -> FieldChoice:
    """Return the fields that hold the text of the first records of a file.

    Raises BadData, without the name of the file, if the records have no such field.
    """
    if tuple(requested) == RECORD:
        return FieldChoice(RECORD)
    if names := split_names(requested):
        for name in names:
            if not any(_as_text(_lookup(record, name)) is not None for record in records):
                raise _no_field(name, records)
        return FieldChoice(names)
    if not records or any(isinstance(record.get(TEXT), str) for record in records):
        return FieldChoice()
    for name in _CHATS:
        if any(_as_turns(record.get(name)) for record in records):
            return FieldChoice((name,))
    for name in _CHINESE_TEXTS:
        if any(_as_text(record.get(name)) for record in records):
            return FieldChoice((name,))
    sizes = _string_sizes(records)
    total = sum(sizes.values())
    for name, size in sizes.items():
        if 2 * size > total and not _is_about(name, records):
            return FieldChoice((name,))
    raise _no_field(TEXT, records)


def note_on(choice: FieldChoice, records: Sequence[Mapping[str, Any]]) -> str:
    """Return a note that names the chosen fields, other fields with much text, and the options that read these too."""
    sizes = _string_sizes(records)
    limit = sum(sizes.get(name, 0) for name in choice.names)
    unread = [name for name, size in sizes.items() if 0 < limit <= _MUCH * size and _is_prose(name, records)]
    unread = [name for name in unread if name not in choice.names]
    parts = [f"text from {choice}"]
    if unread:
        listed = ", ".join(unread[:_NAMES_SHOWN]) + (", …" if len(unread) > _NAMES_SHOWN else "")
        joined = ",".join(name for name in sizes if name in (*choice.names, *unread[:_NAMES_SHOWN]))
        parts += [f"not read: {listed}", f"--text-field {joined} joins them"]
    if _has_conversations(records):
        parts.append(AS_CHAT)
    return "; ".join(parts)


def note_on_entries(value: Any) -> str:
    """Return a note that names the parts of a JSON value that `entries` leaves out, "" if they have little text."""
    if not _is_container(value) or not (name := _part(value)):
        return ""
    sizes = {key: len(msgspec.json.encode(item)) for key, item in value.items() if isinstance(item, str | list | dict)}
    unread = [key for key, size in sizes.items() if key not in (name, *BESIDE_TEXT) and _MUCH * size >= sizes[name]]
    if not unread:
        return ""
    return f"records from {name}; not read: {', '.join(unread[:_NAMES_SHOWN])}; save each as a file to read them too"


def entries(value: Any) -> Sequence[Any]:
    """Return the records of a JSON value: the value if it is a list, the largest list in an object, or the object.

    An object of objects counts as the list of its values. So does an object that maps numbers or names of chapters to
    texts or to lists of strings, also as a field, such as `chapters`. A name such as 第一回 becomes the first line.
    """
    if isinstance(value, list):
        return value
    if not _is_container(value):
        return [value]
    part = value[name] if (name := _part(value)) else value
    if isinstance(part, list):
        return part
    inner = list(part.values())
    if _is_numbered(part):
        return [_chapter(name, item) for name, item in part.items()]
    return inner if len(inner) > 1 and all(isinstance(item, dict) for item in inner) else [value]


def _is_container(value: Any) -> bool:
    """Return True for an object that may contain records: one without a text in the field `text`, and not a poem."""
    return isinstance(value, dict) and not chinese_poetry.has_poems([value]) and not isinstance(value.get(TEXT), str)


def _part(value: Mapping[str, Any]) -> str:
    """Return the name of the value that holds the records of an object, "" if that is the object itself."""
    if _is_numbered(value):
        return ""
    lists = {name: item for name, item in value.items() if isinstance(item, list) and item}
    lists = {name: item for name, item in lists.items() if isinstance(item[0], dict | str)}
    if lists:
        return max(lists, key=lambda name: len(msgspec.json.encode(lists[name])))
    numbered = [name for name, item in value.items() if _is_numbered(item)]
    return numbered[0] if len(numbered) == 1 else ""


def _chapter(name: str, item: str | list[str]) -> str:
    """Return the text of a chapter below its name, unless that is a number or the text begins with it."""
    text = item if isinstance(item, str) else "\n".join(item)
    return text if name.isdecimal() or text.lstrip().startswith(name.strip()) else f"{name}\n{text}"


def _is_numbered(value: Any) -> bool:
    """Return True for an object that maps numbers to texts, or to lists of strings: the chapters of a book.

    The names of most chapters may be words with numbers, such as 第一回, next to a preface, for example.
    """
    if not isinstance(value, dict) or len(value) < 2:
        return False
    chapters = sum(_CHAPTER.match(name.strip()) is not None for name in value)
    if 3 * chapters < 2 * len(value) and not all(name.isdecimal() for name in value):
        return False
    lists = (item if isinstance(item, list) else [item] for item in value.values())
    return all(isinstance(line, str) for item in lists for line in item)


def title_of(record: Mapping[str, Any], choice: FieldChoice) -> str:
    """Return the field `title`, or 题目 and the like, if it is a string and not the text itself, else ""."""
    titles = (record[name] for name in _TITLES if name in record and name not in choice.names)
    return next((title for title in titles if isinstance(title, str)), "")


def meta_of(record: Mapping[str, Any], choice: FieldChoice) -> Any:
    """Return the field `meta` if it is not the text, else author and dynasty; the record itself if it has no text."""
    if choice.is_record:
        return record
    if "meta" in record:
        return record["meta"] if "meta" not in choice.names else None
    pairs = ((key, record[name]) for name, key in _ORIGINS.items() if name in record and name not in choice.names)
    return {key: value.strip() for key, value in pairs if isinstance(value, str) and value.strip()} or None


def _lookup(record: Any, name: str) -> Any:
    """Return the value of a field; a dot leads into a nested object. None if there is none."""
    if not isinstance(record, Mapping):
        return None
    if name in record:
        return record[name]
    position = name.find(".")
    while position > 0:
        if (value := _lookup(record.get(name[:position]), name[position + 1 :])) is not None:
            return value
        position = name.find(".", position + 1)
    return None


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        if not all(isinstance(item, str) for item in value):
            return _as_turns(value) or _as_styled(value)
        return ("" if value[0].endswith("\n") else "\n").join(value)  # lines of notebooks have their line breaks
    return None


def _as_styled(value: list[Any]) -> str | None:
    """Return the text of strings and of objects with `type` and `text`, as in Telegram's exports; None for others."""
    parts = [item.get(TEXT) if isinstance(item, Mapping) and "type" in item else item for item in value]
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else None


def _as_turns(value: Any) -> str | None:
    """Return a list of chat messages as `role: content`, with blank lines between them; None if it is another list."""
    if not isinstance(value, list):
        return None
    turns = []
    for message in value:
        if not isinstance(message, Mapping):
            return None
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if isinstance(content, list):  # parts, some of which are images
            content = "\n".join(part["text"] for part in content if isinstance(part, Mapping) and _has_text(part))
        if not isinstance(role, str):
            return None
        if isinstance(content, str) and content:
            turns.append(f"{_ROLES.get(role, role)}: {content}")
    return "\n\n".join(turns) if turns else None


def _has_text(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get(TEXT), str)


def _string_sizes(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return the characters of each string field of all records, in the order in which the fields appear."""
    sizes: dict[str, int] = {}
    for record in records:
        for name, value in _leaves(record, "", _DEPTH):
            text = _as_text(value)
            if text is not None:
                sizes[name] = sizes.get(name, 0) + len(text)
    return sizes


def _leaves(record: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping) and value and depth:
            yield from _leaves(value, f"{prefix}{name}.", depth - 1)
        else:
            yield f"{prefix}{name}", value


def _is_about(name: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Return True for a field about the text. A `source` of several lines is the text itself, as in notebooks."""
    last = name.rpartition(".")[2].lower()
    return last in _ABOUT and not (last == "source" and any("\n" in text for text in _texts(name, records)))


def _texts(name: str, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (_as_text(_lookup(record, name)) or "" for record in records)


def _is_prose(name: str, records: Sequence[Mapping[str, Any]]) -> bool:
    """Return True for a field that is no title or data about the text, and has letters."""
    if name.partition(".")[0] in BESIDE_TEXT or (
        _is_about(name, records) and name.rpartition(".")[2].lower() not in _PROSE
    ):
        return False
    return any(any(map(str.isalpha, text)) for text in _texts(name, records))


def _has_conversations(records: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a record has one of the forms that --profile chat reads."""
    return any(
        (record.get("chosen") and record.get("rejected"))
        or any(_as_turns(record.get(name)) for name in _CHATS)
        or (any(map(record.get, QUESTIONS)) and any(map(record.get, ANSWERS)))
        for record in records
    )


def _no_field(name: str, records: Sequence[Mapping[str, Any]]) -> BadData:
    names = list(dict.fromkeys(name for record in records for name, _ in _leaves(record, "", _DEPTH)))
    listed = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    sizes = _string_sizes(records)
    likely = {field: size for field, size in sizes.items() if size and not _is_about(field, records)}
    longest = max(sizes, key=lambda field: sizes[field], default="")
    if any(" " in text for text in _texts(longest, records)):  # text, not a URL
        likely = {field: size for field, size in likely.items() if _MUCH * size >= sizes[longest]}
    likely = {field: size for field, size in likely.items() if _MUCH * size >= max(likely.values())}
    suggested = [*likely] or [longest][: sizes.get(longest, 0)]
    if not suggested:
        return BadData(f"no field {name}; fields: {listed or 'none'}", hint="no field holds text")
    if len(suggested) > _NAMES_SHOWN:
        hint = f"pass --text-field NAME with one of them, for example {suggested[0]}"
    else:
        hint = f"pass --text-field {','.join(suggested)}"
    if _has_conversations(records):
        hint += f"; {AS_CHAT}"
    return BadData(f"no field {name}; fields: {listed}", hint=hint)
