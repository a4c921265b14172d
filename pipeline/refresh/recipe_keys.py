"""The keys of a recipe: their descriptions, read from the docstrings of the sections, and all errors of a recipe.

A section describes its keys in its docstring, one or several names and then, after two or more blanks, the text:

    source            a catalogue name, a URL or a path
    include, exclude  patterns of files
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_type_hints

import msgspec

from pipeline.errors import BadConfig, InkstoneError

_ENTRY = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*) {2,}(\S.*)")
_CONTINUATION = re.compile(r" {6,}(\S.*)")
_POSITION = re.compile(r"(?s)(.*) - at `\$(.*)`")


def descriptions(section: type[msgspec.Struct]) -> dict[str, str]:
    """Return the description of each key, from the docstrings of `section` and the classes that it extends."""
    described: dict[str, str] = {}
    for base in reversed(section.__mro__):
        names: list[str] = []
        for line in inspect.cleandoc(base.__doc__ or "").splitlines():
            if entry := _ENTRY.fullmatch(line):
                names = entry[1].split(", ")
                described |= dict.fromkeys(names, entry[2])
            elif names and (continuation := _CONTINUATION.fullmatch(line)):
                described |= {name: f"{described[name]} {continuation[1]}" for name in names}
            else:
                names = []
    return {name: described[name] for name in section.__struct_fields__ if name in described}


def section_types(form: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """Return the sections of a recipe: the fields of `form` that are structs, also optional ones, and their types."""
    types = {}
    for name, annotation in get_type_hints(form).items():
        for candidate in (annotation, *get_args(annotation)):
            if isinstance(candidate, type) and issubclass(candidate, msgspec.Struct):
                types[name] = candidate
    return types


def errors(content: Mapping[str, Any], form: type[msgspec.Struct], *, strict: bool = True) -> list[InkstoneError]:
    """Return all errors of a recipe of this form, each with the dotted path of its key; none if it is valid.

    Every key is converted alone; if all are valid, then each section as a whole, and the recipe.
    """
    return list(_errors(content, form, "", section_types(form), strict))


def _errors(
    content: Mapping[str, Any],
    form: type[msgspec.Struct],
    path: str,
    all_sections: Mapping[str, type[msgspec.Struct]],
    strict: bool,
) -> Iterator[InkstoneError]:
    types, sections = get_type_hints(form), section_types(form)
    required = [field.name for field in msgspec.structs.fields(form) if field.required]
    problems: list[InkstoneError] = [
        BadConfig(f"{path}.{name}: required".lstrip(".")) for name in required if name not in content
    ]
    for name, value in content.items():
        key = f"{path}.{name}".lstrip(".")
        if name not in types:
            problems.append(_unknown_key(key, name, form, all_sections))
        elif name in sections and isinstance(value, dict):
            problems += _errors(value, sections[name], key, all_sections, strict)
        elif required:  # the section cannot be built of one key
            problems += _conversion_errors(value, types[name], key, key, strict)
        else:
            problems += _conversion_errors({name: value}, form, path, key, strict)
    yield from problems or _conversion_errors(content, form, path, path, strict)


def _conversion_errors(content: Any, form: Any, path: str, key: str, strict: bool) -> list[InkstoneError]:
    """Return the error of a conversion, if any; `key` is its position if the error does not name one below `path`."""
    try:
        msgspec.convert(content, form, strict=strict)
    except msgspec.ValidationError as error:
        message = str(error)
        if position := _POSITION.fullmatch(message):
            message, key = position[1], f"{path}{position[2]}".lstrip(".")
        return [BadConfig(f"{key}: {message}")]
    except InkstoneError as error:
        prefix = f"{key}: " if key else ""
        return [type(error)(prefix + _as_keys(error.message), hint=_as_keys(error.hint))]
    return []


def _as_keys(text: str) -> str:
    """Return the message of an option for a recipe: --val-fraction → val_fraction."""
    return re.sub(r"--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), text)


def _unknown_key(
    key: str, name: str, form: type[msgspec.Struct], all_sections: Mapping[str, type[msgspec.Struct]]
) -> BadConfig:
    similar = difflib.get_close_matches(name, form.__struct_fields__, 1)
    if similar and name not in {key for fields in all_sections.values() for key in fields.__struct_fields__}:
        return BadConfig(f"{key}: unknown key (did you mean {similar[0]}?)")
    types = all_sections.values()
    distinct = {  # a section that extends another one repeats its keys
        section: fields
        for section, fields in all_sections.items()
        if not any(map(fields.__mro__[1:].__contains__, types))
    }
    keys = [f"{section}.{other}" for section, fields in distinct.items() for other in fields.__struct_fields__]
    owners = [dotted for dotted in keys if dotted.endswith(f".{name}")]
    if suggested := owners or [
        dotted for dotted in keys if difflib.get_close_matches(name, [dotted.partition(".")[2]], 1, 0.8)
    ]:
        return BadConfig(f"{key}: unknown key here (did you mean {' or '.join(suggested)}?)")
    return BadConfig(f"{key}: unknown key (known: {', '.join(form.__struct_fields__)})")
