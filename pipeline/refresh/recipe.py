"""Recipes: the complete chain for one corpus as a TOML file. Recipes hold options, never code."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline import tokenizers
from pipeline.clean.options import TABLE_FILES, CleanOptions
from pipeline.errors import BadConfig, InkstoneError, InputMissing
from pipeline.refresh import recipe_keys
from pipeline.runtime.regular_file import regular_file
from pipeline.sources.catalogue import CATALOGUE
from pipeline.store.manifest import check_name, name_from_path
from pipeline.tokenizers import ENCODINGS
from pipeline.tokenizers import stage as tokenizers_stage
from pipeline.tokenizers.end_of_text import tokenizer_file_at
from pipeline.tokens.options import TokenizeOptions

LANGUAGES = ("en", "zh")  # of reports
BUNDLED = Path(__file__).resolve().parents[1] / "recipes"
_COMPARE = f"compare it with {BUNDLED / 'sample.toml'}"


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class DownloadSection(_Section, frozen=True):
    """Sources to download.

    source       a file, a folder, a URL, a name of `download --list`, `hf:OWNER/NAME`, or a list of these;
                 each entry of a list is cleaned into a corpus of its own
    shards       shards of the Pile, e.g. `"0,val"`
    include      patterns of the files to take of a folder or dataset, e.g. `["*.md"]`
    exclude      patterns of the files and folders to leave out
    mirror       server or local clone to use instead of the source's own
    locked       keep the pinned files, even if they change upstream
    allow_hosts  further hosts that redirects may lead to
    """

    source: str | tuple[str, ...]
    shards: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mirror: str = ""
    locked: bool = False
    allow_hosts: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source


class TokenizerSection(_Section, frozen=True):
    """A ready tokenizer, or the kind and size of one to train.

    use         a ready tokenizer: an encoding of tiktoken such as `r50k_base`, the name of one that was trained or of a
                run, a `.model` file, or a tokenizer.json or its folder
    kind        kind of the tokenizer to train: `bpe`, `unigram`, `char` or `bbpe`
    vocab_size  its size, e.g. 8000; `"auto"`, the default, takes what the report of the corpus advises, and for `char`
                all characters
    keep        train it once and keep it when the text changes, so that the run continues on the new text; another kind
                or size trains it again, and so does `--retrain-tokenizer`
    """

    use: str = ""
    kind: str = "bpe"
    vocab_size: int | str | None = None
    keep: bool = True

    def __post_init__(self) -> None:
        if not self.use:
            tokenizers_stage.check_options(self.kind, self.vocab_size)


class TokenizeSection(TokenizeOptions, frozen=True, forbid_unknown_fields=True):
    """The options of `tokenize`, and the library that encodes.

    format         files to write: `memmap`, `hdf5` or `both`
    val_fraction   fraction to hold out; by default as in the previous generation, at first 0.05, or 0 with a validation
                   corpus
    val_split      hold out whole documents or stretches of them; `auto` keeps the choice of the previous generation,
                   and at first chooses
    allow_overlap  accept a validation corpus even if most of it is trained on too
    allow_unknown  accept a text even if more than 5 % of its characters are not in the vocabulary
    max_bad        largest fraction of bad documents that is accepted
    include_sets   sets of the Pile to take, e.g. `["Wikipedia (en)"]`
    exclude_sets   sets of the Pile to leave out
    min_chars      minimum number of characters of a document
    max_documents  most documents to train on, and to validate on; 0 for all
    dedup          `exact` keeps the first of equal texts in input order, for about 110 bytes of memory per document
    text_fields    fields or columns that hold the text; by default `text`, or the one that dominates
    encoder        library for an encoding of tiktoken: `auto`, `gigatoken` or `tiktoken`
    """

    encoder: str = "auto"


class TrainSection(_Section, frozen=True):
    """The options of `train`.

    preset   a preset, see `inkstone presets`; `"auto"` takes the preset of the recipe's run, and at first chooses one
             for the text, the device and the time
    parent   a run to tune on the text, which is conversations or pairs of answers, as with `train --from`
    steps    length of the training in steps
    minutes  length of the training in minutes, instead of steps
    set      table of single settings of the preset, as for `train --set`
    """

    preset: str = "auto"
    parent: str = ""
    steps: int | None = None
    minutes: float | None = None
    set: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.parent and self.preset != "auto":
            raise BadConfig("a run is tuned with its own network, and preset is given", hint="leave out preset")


class TuneSection(DownloadSection, frozen=True):
    """Conversations, or pairs of answers, on which a run is tuned. [sft] tunes the run of the recipe, and makes
    NAME-sft; [dpo] tunes NAME-sft, or without [sft] the run of the recipe, and makes NAME-dpo.

    steps    length of the training in steps; by default as many epochs as `train --from` takes
    minutes  length of the training in minutes, instead of steps
    set      table of single settings, as for `train --set`
    prompts  turns of the user that the tuned run answers after a refresh
    """

    steps: int | None = None
    minutes: float | None = None
    set: dict[str, Any] = {}
    prompts: tuple[str, ...] = ()


class SampleSection(_Section, frozen=True):
    """Texts that the trained model continues after a refresh.

    prompts      beginnings to continue; the first is also continued at each evaluation of a training
    max_tokens   longest continuation, in tokens
    temperature  0 takes the most probable token; higher values vary more; by default as in `sample`
    top_k        take only the most probable tokens, this many; by default as in `sample`
    min_p        take only tokens whose probability is at least this fraction of the highest; by default as in `sample`
    seed         number that decides the random choices; by default as in `sample`
    """

    prompts: tuple[str, ...] = ()
    max_tokens: int = 80
    temperature: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None


class ReportSection(_Section, frozen=True):
    """The report that a refresh writes to `reports/NAME.html`.

    lang  its language: `en` or `zh`
    """

    lang: str = "en"

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            raise BadConfig(f"lang must be one of {', '.join(LANGUAGES)}, got {self.lang}", hint="for example zh")


class Recipe(_Section, frozen=True):
    """A recipe.

    Without `clean` the text is cleaned with the default options, or, if `tokenizer` names a ready tokenizer, tokenized
    as it is.

    name  name of everything that is built; by default that of the file
    """

    name: str
    download: DownloadSection
    clean: CleanOptions | None = None
    tokenizer: TokenizerSection = TokenizerSection()
    tokenize: TokenizeSection = TokenizeSection()
    train: TrainSection = TrainSection()
    sft: TuneSection | None = None
    dpo: TuneSection | None = None
    sample: SampleSection = SampleSection()
    report: ReportSection = ReportSection()

    def __post_init__(self) -> None:
        tokenizers.check_encoder(self.tokenizer.use, self.tokenize.encoder)
        if not self.clean and not self.tokenizer.use:
            msgspec.structs.force_setattr(self, "clean", CleanOptions())


def find(reference: str | Path) -> Path:
    """Return the path of a recipe: an existing file, or else a bundled recipe by its name, such as "sample"."""
    path = Path(reference)
    bundled = BUNDLED / f"{path.name}.toml"
    return bundled if not path.exists() and str(path) == path.name and bundled.is_file() else path


def load(
    reference: str | Path, overrides: Sequence[str] = (), check_training: Callable[[TrainSection], object] | None = None
) -> Recipe:
    """Read a recipe by path or bundled name; `overrides` such as "train.minutes=3" replace single entries.

    `check_training` raises BadConfig for settings that cannot be trained with. Raises InputMissing if there is no such
    recipe, and BadConfig with all errors of its entries, each with its dotted path.
    """
    path = find(reference)
    try:
        content = msgspec.toml.decode(regular_file(path).read_bytes().removeprefix(codecs.BOM_UTF8))
    except FileNotFoundError:
        names = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.toml")))
        raise InputMissing(f"{path}: no such recipe", hint=f"name a TOML file, or one of {names}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: not TOML: {error}", hint=_COMPARE) from None
    content.setdefault("name", name_from_path(str(path.absolute().with_suffix(""))))
    _resolve_paths(content, path.parent.absolute())
    for override in overrides:
        _override(content, override)
    strict = not overrides
    errors = recipe_keys.errors(content, Recipe, strict=strict)
    if isinstance(content["name"], str):
        errors += _raised("name", check_name, content["name"])
    for section in ("train", "sft", "dpo"):
        if check_training and not any(re.match(rf"{section}\b", error.message) for error in errors):
            errors += _training_errors(section, content.get(section, {}), check_training, strict)
    if len(errors) == 1:
        raise type(errors[0])(f"{path}: {errors[0].message}", hint=errors[0].hint or _COMPARE)
    if errors:
        messages = "; ".join(error.message for error in errors)
        raise BadConfig(f"{path}: {len(errors)} errors: {messages}", hint=_COMPARE)
    return msgspec.convert(content, Recipe, strict=strict)


def _raised(key: str, check: Callable[[Any], object], value: Any) -> list[InkstoneError]:
    """Return the error that `check` raises for the value of a key, if any."""
    try:
        check(value)
    except InkstoneError as error:
        return [type(error)(f"{key}: {error.message}", hint=error.hint)]
    return []


def _training_errors(
    name: str, section: dict[str, Any], check_training: Callable[[TrainSection], object], strict: bool
) -> list[InkstoneError]:
    """Return the errors of the settings in [train], or of a tuning.

    These are the errors of the preset; if it has none, those of the entries that fit no others; if there are none,
    those of all entries together. Entries that are valid only together, such as width = 192 and heads = 3, are no
    error.
    """

    def check(key: str, entries: dict[str, Any]) -> list[InkstoneError]:
        return _raised(key, check_training, msgspec.convert(entries, TrainSection, strict=strict))

    if name != "train":
        section = {key: section[key] for key in ("steps", "minutes", "set") if key in section} | {"parent": "base"}
    together = check(name, section)
    if not together:
        return []
    valid: dict[str, Any] = {key: section[key] for key in ("preset", "parent") if key in section}
    if errors := check(f"{name}.preset", valid):
        return errors
    left = [(name, key, section[key]) for key in ("steps", "minutes") if key in section]
    left += [(f"{name}.set", key, value) for key, value in section.get("set", {}).items()]
    while True:  # each round adds the entries that fit the valid ones, until the others are errors
        rest, errors = [], []
        for table, key, value in left:
            more: dict[str, Any] = {key: value}
            if table == f"{name}.set":
                more = {"set": valid.get("set", {}) | more}
            raised = check(f"{table}.{key}", valid | more)
            if raised:
                rest.append((table, key, value))
                errors += raised
            else:
                valid |= more
        if len(rest) in (0, len(left)):
            return errors or together
        left = rest


def _resolve_paths(content: dict[str, Any], folder: Path) -> None:
    """Join relative paths of the recipe with its folder."""
    resolvers = {
        **{section: {"source": _resolve_source} for section in ("download", "sft", "dpo")},
        "clean": {**dict.fromkeys(TABLE_FILES, _resolve_table), "decontaminate": _resolve_corpus},
        "tokenizer": {"use": _resolve_tokenizer},
    }
    for section, keys in resolvers.items():
        table = content.get(section)
        if not isinstance(table, dict):
            continue
        for key, resolve in keys.items():
            value = table.get(key)
            if isinstance(value, list):
                table[key] = [resolve(folder, entry) if entry and isinstance(entry, str) else entry for entry in value]
            elif value and isinstance(value, str):
                table[key] = resolve(folder, value)


def local_paths(recipe: Recipe) -> tuple[Path, ...]:
    """Return the files and folders that a recipe names: sources, tables, held-out text and a tokenizer."""
    tables = [getattr(recipe.clean, name) for name in TABLE_FILES] if recipe.clean else []
    held_out = recipe.clean.decontaminate if recipe.clean else ()
    tunings = [source for section in (recipe.sft, recipe.dpo) if section for source in section.sources]
    names = (*recipe.download.sources, *tunings, *tables, *held_out, recipe.tokenizer.use)
    return tuple(Path(name) for name in names if os.path.isabs(name))


def _resolve_source(folder: Path, name: str) -> str:
    path = folder / name
    if path.exists():
        return str(path.resolve())
    return name if name in CATALOGUE or re.match(r"[a-z]+:", name) else os.path.abspath(path)


def _resolve_table(folder: Path, name: str) -> str:
    return os.path.abspath(folder / name)


def _resolve_corpus(folder: Path, name: str) -> str:
    """Return the absolute path of a corpus that is named by a path; other names are artifacts or sources."""
    path = folder / name
    return str(path.resolve()) if ("/" in name or path.suffix) and path.exists() else name


def _resolve_tokenizer(folder: Path, name: str) -> str:
    path = folder / name
    is_file = path.suffix in (".model", ".json") or (name not in ENCODINGS and tokenizer_file_at(str(path)))
    return os.path.abspath(path) if is_file else name


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, _, name = key.partition(".")
    if not equals or not name:
        raise BadConfig(f"--set {override}: not of the form section.key=value", hint="for example train.minutes=3")
    table = content.setdefault(section, {})
    if not isinstance(table, dict):
        raise BadConfig(f"--set {override}: {section} is not a section", hint="for example train.minutes=3")
    if section in ("train", "sft", "dpo") and name in ("steps", "minutes"):  # one replaces the other
        table.pop("minutes" if name == "steps" else "steps", None)
    if name.startswith("set."):
        table, name = table.setdefault("set", {}), name.removeprefix("set.")
    table[name] = value
