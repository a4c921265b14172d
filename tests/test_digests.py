"""The table of released source files: it is complete, up to date, and golden bytes are still the same."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from pipeline.store import code
from tests.support.digests import STAGES, golden_of, problems, source_digests
from tests.test_house import IMPORTS, MODULES, ROOT

ENTRIES = {  # module in which a stage begins
    "clean": "pipeline.clean.stage",
    "train-tokenizer": "pipeline.tokenizers.stage",
    "tokenize": "pipeline.tokens.stage",
    "tokenize (counting)": "pipeline.tokens.counting",
    "train": "model.training.stage",
    "import-model": "model.exchange.import_model",
}


def imported_files(entry: str, imports: dict[str, set[str]]) -> set[str]:
    """Return the paths of all modules that `entry` imports, directly or not, also inside functions; and its own."""
    names: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in names:
            names.add(name)
            waiting += [*imports[name], name.rpartition(".")[0]]
    return {MODULES[name].relative_to(ROOT).as_posix() for name in names}


def undeclared(stage: str, paths: Iterable[str]) -> list[str]:
    declared = (*STAGES[stage][1].paths, *STAGES[stage][1].harmless, *_EMPTY)
    return sorted(path for path in paths if not any(f"{path}/".startswith(f"{entry}/") for entry in declared))


_EMPTY = [
    path.relative_to(ROOT).as_posix()
    for path in MODULES.values()
    if path.name == "__init__.py" and "import" not in path.read_text(encoding="utf-8").split('"""')[-1]
]


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_that_a_stage_imports_is_declared(stage: str) -> None:
    assert undeclared(stage, imported_files(ENTRIES[stage], IMPORTS)) == []


def test_an_undeclared_module_is_reported() -> None:
    imports = IMPORTS | {"pipeline.tokens.split": {*IMPORTS["pipeline.tokens.split"], "pipeline.clean.lines"}}
    assert "pipeline/clean/lines.py" in undeclared("tokenize", imported_files("pipeline.tokens.stage", imports))


@pytest.mark.parametrize("stage", STAGES)
def test_every_declared_path_exists_and_every_reason_is_given(stage: str) -> None:
    declared = STAGES[stage][1]
    assert [path for path in (*declared.paths, *declared.harmless) if not (ROOT / path).exists()] == []
    assert all(declared.harmless.values())


def test_the_table_is_up_to_date() -> None:
    released = code.read_released()
    assert source_digests() == released.files, "run `make digests`"
    assert {stage: schema for stage, (schema, _) in STAGES.items()} == released.schemas, "run `make digests`"


@pytest.mark.parametrize("stage", STAGES)
def test_reference_texts_still_give_the_golden_bytes(stage: str) -> None:
    assert list(problems(stage, code.read_released(), golden_of(stage))) == []
