"""The recipe of an artifact: the sections that would build it again, derived from the manifests of its chain.

Manifests have no paths. The paths of texts and tables come from the pins of the raw cache and from run.json.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.clean.options import TABLE_FILES, CleanOptions
from pipeline.errors import BadConfig, InkstoneError, InputMissing
from pipeline.refresh import sources
from pipeline.refresh.recipe import DownloadSection, TokenizeSection
from pipeline.sources.cache import RawFile, read_lock_file
from pipeline.sources.catalogue import CATALOGUE
from pipeline.sources.dataset import PREFIX
from pipeline.store import artifact
from pipeline.store.artifact import Artifact
from pipeline.store.generations import read_run_info
from pipeline.tokenizers import ENCODINGS
from pipeline.tokens.split import MARKED
from pipeline.tokens.totals import has_many_unknown

Sections = dict[str, dict[str, Any]]
_KINDS = ("runs", "tokens", "corpora")  # in the order in which a bare name is searched
_DATASET = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/")
_MAX_CANDIDATES = 64


@dataclass(frozen=True)
class History:
    """Name and sections of a recipe. `notes` list what a recipe cannot express, and what was not recorded."""

    name: str
    sections: Sections
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Text:
    """A file that was read. `name` is that in the manifest, such as `book/part/a.txt`.

    `source` and `pin` are set if the file is in the raw cache.
    """

    name: str
    path: str
    source: str = ""
    pin: RawFile | None = None

    @property
    def file(self) -> str:
        """The name below the folder of its source."""
        return self.name.removeprefix(f"{self.source}/") if self.source else self.name

    @property
    def origin(self) -> str:
        """The URL, or the path without the size and the time that a pin adds."""
        if not self.pin:
            return self.path
        is_url = self.pin.origin.startswith(("https://", "http://"))
        return self.pin.origin if is_url else self.pin.origin.rsplit(":", 2)[0]


def find(root: Path, reference: str) -> Artifact:
    """Return the artifact that `reference` names: KIND/NAME, or else the run, the tokens or the corpus NAME."""
    kinds = [kind for kind in _KINDS if reference.startswith(f"{kind}/")]
    for kind in kinds or _KINDS:
        try:
            return artifact.find(root, kind, reference)
        except InputMissing:
            if kinds:
                raise
    raise InputMissing(f"{reference}: no artifact has this name", hint="`inkstone status` lists all artifacts")


def recipe_of(root: Path, last: Artifact) -> History:
    """Return the recipe of tokens or of a corpus.

    Raises InputMissing if an artifact of its chain was deleted, BadConfig if no recipe can describe the chain.
    """
    corpora = _corpora(root, last)
    groups = [_texts(root, corpus) for corpus in corpora] or [_texts(root, last)]
    name = (corpora or [last])[0].manifest.name
    options = CleanOptions() if corpora else TokenizeSection()
    text_fields = (corpora or [last])[0].manifest.options.get("text_fields") or options.text_fields
    download, notes = _download(root, name, groups, tuple(text_fields))
    sections: Sections = {"download": download}
    if corpora:
        cleaning, missing = _clean(corpora)
        sections["clean"] = cleaning
        notes += missing
    if last.manifest.kind == "tokens":
        sections |= {"tokenizer": _tokenizer(root, last, name, corpora), "tokenize": _tokenize(last)}
    labels = [group[0].file.partition("/")[0] for group in groups]
    expected = [name, *(f"{name}.{label}" for label in labels[1:])]
    if corpora and (names := [corpus.manifest.name for corpus in corpora]) != expected:
        notes.append(f"the corpora {', '.join(names)} become {', '.join(expected)}, with other keys")
    if last.manifest.name != name:
        notes.append(f"{last.ref} gets the name {name}, that of its corpus")
    return History(name, sections, tuple(notes))


def _corpora(root: Path, last: Artifact) -> list[Artifact]:
    """Return the corpora that an artifact was made from, or the corpus itself. Raises BadConfig for a --val corpus."""
    if last.manifest.kind == "corpora":
        return [last]
    inputs = last.manifest.inputs
    texts = list(dict.fromkeys(entry.name for entry in inputs if entry.role == "train"))
    validation = [entry.name for entry in inputs if entry.role == "val"]
    own_sources = {name.partition("/")[0] for name in texts}
    if any(name.startswith("corpora/") or name.partition("/")[0] not in own_sources for name in validation):
        raise BadConfig(
            f"{last.ref} has a separate validation text, {validation[0]}, which a recipe cannot name",
            hint=f"`inkstone recipe {texts[0]}` writes the recipe of the text that is trained on",
        )
    corpora = [artifact.read_ref(root, name) for name in texts if name.startswith("corpora/")]
    if corpora and len(corpora) < len(texts):
        raise BadConfig(
            f"{last.ref} was made from corpora and from other files, which a recipe cannot combine",
            hint=f"`inkstone recipe {corpora[0].ref}` writes the recipe of one corpus",
        )
    return corpora


def _texts(root: Path, last: Artifact) -> list[_Text]:
    """Return the files that an artifact was made from."""
    names = [entry.name for entry in last.manifest.inputs if entry.role in ("raw", "train", "val")]
    paths = read_run_info(last.path).inputs or ("",) * len(names)
    texts = []
    for name, path in zip(names, paths, strict=True):
        source, _, file = name.partition("/")
        is_raw = not path or Path(path).is_relative_to((root / "raw").absolute())
        pin = read_lock_file(root, source).get(file) if is_raw and file else None
        if not pin and not path:
            raise InputMissing(
                f"{last.ref}: the path of {name} was not recorded, and it is not in the raw cache",
                hint="build it again with this version, then run the same command",
            )
        texts.append(_Text(name, path, source if pin else "", pin))
    return texts


def _download(
    root: Path, name: str, groups: list[list[_Text]], text_fields: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
    """Return [download], with the first candidate source whose files have the recorded names, and notes."""
    recorded = [{text.name for text in group} for group in groups]
    candidates = list(itertools.islice(_sources(groups), _MAX_CANDIDATES))
    notes = [
        f"the query of {text.origin} was not recorded" for group in groups for text in group if "/…" in text.origin
    ]
    for download in candidates:
        entries = [download["source"]] if isinstance(download["source"], str) else download["source"]
        if datasets := [entry for entry in entries if entry.startswith(PREFIX)]:  # only the hub knows its files
            return download, [*notes, f"a revision of {datasets[0]}, include and exclude were not recorded"]
        if _names(root, name, download, text_fields) == recorded:
            return download, notes
    if any(text.pin is None for group in groups for text in group):
        notes.append("it was made from the files themselves; `refresh` copies them to raw/ first: other keys")
    else:
        notes.append("its source has other files now, or include and exclude chose some: other keys")
    return candidates[0], notes


def _names(root: Path, name: str, download: dict[str, Any], text_fields: tuple[str, ...]) -> list[set[str]]:
    """Return the names that the files of [download] would have in each corpus; none if they cannot be read."""
    try:
        section = msgspec.convert(download, DownloadSection)
        source, groups = sources.resolve(name, section, root, text_fields=text_fields)
    except InkstoneError:
        return []
    return [{f"{source.name}/{file}" for file in group.names} for group in groups]


def _sources(groups: list[list[_Text]]) -> Iterator[dict[str, Any]]:
    """Yield possible [download] sections: one source, or a list with one entry for each group."""
    if len(groups) == 1:
        source = groups[0][0].source
        for entry in _entries([(text.origin, text.file) for text in groups[0]], source):
            if entry.startswith(PREFIX) and entry.rpartition("/")[2] != source:
                continue  # an entry of a list
            yield {"source": entry} | ({"shards": _shards(groups[0])} if entry == "pile" else {})
    lists = []
    for group in groups:
        top = group[0].file.partition("/")[0]
        lists.append(list(_entries([(text.origin, text.file.removeprefix(f"{top}/")) for text in group], top)))
    yield from ({"source": list(entries)} for entries in itertools.product(*lists))


def _entries(files: list[tuple[str, str]], name: str) -> Iterator[str]:
    """Yield possible sources called `name` of files, given as origins and names below the source."""
    origin, file = files[0]
    if name in CATALOGUE:
        yield name
    if dataset := _DATASET.search(origin):
        yield f"{PREFIX}{dataset[1]}"
    if origin.startswith(("https://", "http://")) or (len(files) == 1 and Path(origin).name == file):
        yield origin
    if origin.endswith(f"/{file}"):
        yield origin.removesuffix(f"/{file}")
    else:
        yield origin


def _shards(texts: list[_Text]) -> str:
    return ",".join(Path(text.file).name.partition(".")[0] for text in texts)


def _clean(corpora: list[Artifact]) -> tuple[dict[str, Any], list[str]]:
    """Return [clean], and a note for each table whose path was not recorded."""
    options = [
        {name: value for name, value in corpus.manifest.options.items() if name not in ("stage", "files")}
        for corpus in corpora
    ]
    if any(other != options[0] for other in options):
        raise BadConfig(
            f"{corpora[0].ref} and {corpora[1].ref} were cleaned differently, and a recipe has one [clean]",
            hint=f"`inkstone recipe {corpora[0].ref}` writes the recipe of one corpus",
        )
    settings = read_run_info(corpora[0].path).settings
    unknown = [name for name in TABLE_FILES if options[0][name] and name not in settings]
    values = {name: value for name, value in options[0].items() if name not in TABLE_FILES} | settings
    notes = [f"the path of the table {name} was not recorded: add it to [clean]" for name in unknown]
    return {"unit": values["unit"], **_differences(values, CleanOptions())}, notes


def _tokenizer(root: Path, last: Artifact, name: str, corpora: list[Artifact]) -> dict[str, Any]:
    """Return [tokenizer]: how the tokenizer was trained, or the name of a ready one."""
    used = next((entry.name for entry in last.manifest.inputs if entry.role == "tokenizer"), "")
    if used:
        trained = artifact.read_ref(root, used)
        options, texts = trained.manifest.options, [entry.name for entry in trained.manifest.inputs]
        own = [corpus.ref.rpartition("/")[0] for corpus in corpora]
        is_own = trained.manifest.name in (name, last.manifest.name) and "flags" not in options
        if not is_own or [text.rpartition("/")[0] for text in texts] != own[: len(texts)]:
            return {"use": trained.manifest.name}
        return {"kind": trained.manifest.option("kind", str), "vocab_size": options.get("vocab_size", "auto")}
    ready = last.manifest.counts["tokenizer"]
    if ready not in ENCODINGS:
        raise BadConfig(
            f"{last.ref} has the foreign tokenizer {ready}, whose file was not recorded",
            hint="`inkstone recipe` of its corpus writes the rest; add [tokenizer] use = FILE to it",
        )
    return {"use": ready}


def _tokenize(tokens: Artifact) -> dict[str, Any]:
    """Return [tokenize]."""
    options = tokens.manifest.options
    values = {name: options[name] for name in TokenizeSection.__struct_fields__ if name in options}
    values["encoder"] = "tiktoken" if options.get("encoder") == "tiktoken" else "auto"
    has_own_split = any(entry.role == "val" for entry in tokens.manifest.inputs)
    split = options.get("split")
    if split and split["mode"] != MARKED.mode:
        values |= {"val_fraction": split["fraction"], "val_split": split["mode"]}
    elif not split and not has_own_split:
        values["val_fraction"] = 0.0
    values["allow_unknown"] = has_many_unknown(tokens.manifest.counts)
    return _differences(values, TokenizeSection())


def _differences(values: dict[str, Any], defaults: msgspec.Struct) -> dict[str, Any]:
    """Return the values that differ from the defaults, with lists for tuples."""
    own = msgspec.json.decode(msgspec.json.encode(defaults))
    return {name: value for name, value in values.items() if name in own and value != own[name]}
