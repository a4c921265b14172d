"""A recipe: the whole chain for one corpus as a TOML file. Recipes hold choices, never code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.clean.options import CleanOptions
from pipeline.errors import BadConfig, InputMissing
from pipeline.runtime.ledger import DEFAULT_MAX_BAD
from pipeline.store.manifest import check_name
from pipeline.tokens.stage import TokenizeOptions

BUNDLED = Path(__file__).resolve().parents[1] / "recipes"


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Download(_Section, frozen=True):
    """What to fetch: a catalogue name, a URL or a path; `shards` for the Pile.

    `locked`: what is pinned stays, whatever changes upstream. `allow_hosts`: where redirects may lead besides.
    """

    source: str
    shards: str = ""
    mirror: str = ""
    locked: bool = False
    allow_hosts: tuple[str, ...] = ()


class TokenizerChoice(_Section, frozen=True):
    """Either `use`, a ready encoding such as r50k_base, or the kind and size of one to train."""

    use: str = ""
    kind: str = "bpe"
    vocab_size: int = 8000


class Tokenize(_Section, frozen=True):
    """As the options of `tokenize`."""

    format: str = "memmap"
    val_fraction: float | None = None
    max_bad: float = DEFAULT_MAX_BAD
    include_sets: tuple[str, ...] = ()
    exclude_sets: tuple[str, ...] = ()
    min_chars: int = 0
    max_documents: int = 0
    dedup: str = "no"
    encoder: str = "auto"

    def options(self) -> TokenizeOptions:
        chosen = msgspec.structs.asdict(self)
        del chosen["encoder"]  # it is the tokenizer's
        return TokenizeOptions(**chosen)


class Train(_Section, frozen=True):
    """As the options of `train`; `set` overrides single numbers of the preset."""

    preset: str
    steps: int | None = None
    minutes: float | None = None
    set: dict[str, Any] = {}


class Sample(_Section, frozen=True):
    """What to ask the model at the end."""

    prompts: tuple[str, ...] = ()
    max_tokens: int = 80
    temperature: float = 0.8
    top_k: int = 40
    seed: int = 1


class Recipe(_Section, frozen=True):
    name: str
    download: Download
    tokenizer: TokenizerChoice
    train: Train
    tokenize: Tokenize = Tokenize()
    clean: CleanOptions | None = None
    sample: Sample = Sample()


def find(reference: str | Path) -> Path:
    """Path of a recipe: a file that exists, or else a bundled recipe by its name, such as "sample"."""
    path = Path(reference)
    bundled = BUNDLED / f"{path.name}.toml"
    return bundled if not path.exists() and str(path) == path.name and bundled.is_file() else path


def load(reference: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe, named by path or by bundled name; `settings` like "train.minutes=3" replace single entries.

    Raises InputMissing if there is no such recipe, BadConfig with the position of an entry that is not valid.
    """
    path = find(reference)
    try:
        content = msgspec.toml.decode(path.read_bytes())
    except FileNotFoundError:
        names = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.toml")))
        raise InputMissing(f"{path}: no such recipe", hint=f"name a TOML file, or one of {names}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: not TOML: {error}", hint=f"compare it with {BUNDLED / 'sample.toml'}") from None
    for setting in settings:
        _set(content, setting)
    try:
        recipe = msgspec.convert(content, Recipe, strict=not settings)
    except msgspec.ValidationError as error:
        raise BadConfig(f"{path}: {error}", hint=f"compare it with {BUNDLED / 'sample.toml'}") from None
    check_name(recipe.name)
    return recipe


def _set(content: dict[str, Any], setting: str) -> None:
    key, equals, value = setting.partition("=")
    section, _, name = key.partition(".")
    if not equals or not name:
        raise BadConfig(f"--set {setting}: not of the form section.key=value", hint="for example train.minutes=3")
    table = content.setdefault(section, {})
    if not isinstance(table, dict):
        raise BadConfig(f"--set {setting}: {section} is no section", hint="for example train.minutes=3")
    if section == "train" and name in ("steps", "minutes"):  # the one replaces the other
        table.pop("minutes" if name == "steps" else "steps", None)
    if name.startswith("set."):
        table, name = table.setdefault("set", {}), name.removeprefix("set.")
    table[name] = value
