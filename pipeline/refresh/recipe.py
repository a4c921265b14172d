"""Recipes: the complete chain for one corpus as a TOML file. Recipes hold options, never code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, InputMissing
from pipeline.store.manifest import check_name
from pipeline.tokens.stage import TokenizeOptions

BUNDLED = Path(__file__).resolve().parents[1] / "recipes"


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class DownloadSection(_Section, frozen=True):
    """Sources to download.

    source       a catalogue name, a URL or a path, or a list of them; a relative path starts at the recipe's folder
    shards       shards of the Pile, e.g. "0,val"
    include      patterns of the files to take of a folder or dataset, e.g. ["*.md"]
    exclude      patterns of the files and folders to leave out
    mirror       server to use instead of the source's own
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
    """Either `use`, a ready encoding such as r50k_base, or the kind and size of a tokenizer to train.

    Without a size, or with "auto", the one that the report of the corpus advises is used.
    `keep` trains the tokenizer once and keeps it when the text changes, so that a run can continue on the new text.
    """

    use: str = ""
    kind: str = "bpe"
    vocab_size: int | str | None = None
    keep: bool = False


class TokenizeSection(TokenizeOptions, frozen=True, forbid_unknown_fields=True):
    """The options of `tokenize`, including the library that encodes a tiktoken encoding."""

    encoder: str = "auto"


class TrainSection(_Section, frozen=True):
    """The options of `train`; `set` overrides single settings of the preset.

    The preset "auto" is that of the recipe's run, or else one that is chosen for the text, the device and the time.
    """

    preset: str = "auto"
    steps: int | None = None
    minutes: float | None = None
    set: dict[str, Any] = {}


class SampleSection(_Section, frozen=True):
    """Prompts to continue with the trained model, and the sampling options."""

    prompts: tuple[str, ...] = ()
    max_tokens: int = 80
    temperature: float = 0.8
    top_k: int = 40
    seed: int = 1


class Recipe(_Section, frozen=True):
    """A recipe. Without `clean` the raw files are tokenized as they are."""

    name: str
    download: DownloadSection
    tokenizer: TokenizerSection
    train: TrainSection = TrainSection()
    tokenize: TokenizeSection = TokenizeSection()
    clean: CleanOptions | None = None
    sample: SampleSection = SampleSection()


def find(reference: str | Path) -> Path:
    """Return the path of a recipe: an existing file, or else a bundled recipe by its name, such as "sample"."""
    path = Path(reference)
    bundled = BUNDLED / f"{path.name}.toml"
    return bundled if not path.exists() and str(path) == path.name and bundled.is_file() else path


def load(reference: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or bundled name; `overrides` such as "train.minutes=3" replace single entries.

    Raises InputMissing if there is no such recipe, and BadConfig with the position of an invalid entry.
    """
    path = find(reference)
    try:
        content = msgspec.toml.decode(path.read_bytes())
    except FileNotFoundError:
        names = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.toml")))
        raise InputMissing(f"{path}: no such recipe", hint=f"name a TOML file, or one of {names}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: not TOML: {error}", hint=f"compare it with {BUNDLED / 'sample.toml'}") from None
    _resolve_paths(content, path.parent)
    for override in overrides:
        _override(content, override)
    try:
        recipe = msgspec.convert(content, Recipe, strict=not overrides)
    except msgspec.ValidationError as error:
        raise BadConfig(f"{path}: {error}", hint=f"compare it with {BUNDLED / 'sample.toml'}") from None
    check_name(recipe.name)
    return recipe


def _resolve_paths(content: dict[str, Any], folder: Path) -> None:
    """Join relative paths of sources with the folder of the recipe, if they exist there."""
    section = content.get("download")
    if not isinstance(section, dict):
        return
    source = section.get("source")
    sources = source if isinstance(source, list) else [source]
    resolved = [
        str((folder / name).resolve()) if isinstance(name, str) and name and (folder / name).exists() else name
        for name in sources
    ]
    if source is not None:
        section["source"] = resolved if isinstance(source, list) else resolved[0]


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, _, name = key.partition(".")
    if not equals or not name:
        raise BadConfig(f"--set {override}: not of the form section.key=value", hint="for example train.minutes=3")
    table = content.setdefault(section, {})
    if not isinstance(table, dict):
        raise BadConfig(f"--set {override}: {section} is not a section", hint="for example train.minutes=3")
    if section == "train" and name in ("steps", "minutes"):  # one replaces the other
        table.pop("minutes" if name == "steps" else "steps", None)
    if name.startswith("set."):
        table, name = table.setdefault("set", {}), name.removeprefix("set.")
    table[name] = value
