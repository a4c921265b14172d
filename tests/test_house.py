"""The house rules that a reader relies on: who may import whom, what stays unloaded, what is never named."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each floor may import from itself downwards; a room that is not listed here fails the test: give it a floor.
FLOORS = (
    {"errors", "redaction"},
    {"progress", "files", "ledger", "network", "clean", "clean.alphabet", "clean.codes"},
    {"console"},
    {"locks", "manifest"},
    {"shelf"},
    {"artifact", "engines", "compression", "tokenizers.interface", "tokenizers.gigatoken"},
    {"tokenizers.tiktoken", "tokenizers.sentencepiece", "tokenizers.characters"},
    {"tokenizers.foreign", "tokenizers.huggingface", "tokenizers.unfolding", "generations"},
    {"tokenizers.store"},
    {"documents", "decoding"},
    {"poems"},
    {"clean.rule", "clean.sentences", "clean.advice", "clean.filters", "clean.lengths", "clean.duplicates"},
    {
        "clean.characters",
        "clean.headings",
        "clean.layout",
        "clean.lines",
        "clean.markup",
        "clean.spaces",
        "clean.marks",
    },
    {"clean.lines", "clean.quotes", "clean.punctuation", "clean.script", "clean.verse", "clean.variants"},
    {"clean.boilerplate", "clean.gaiji", "clean.lacunae", "clean.mojibake", "clean.notes", "clean.report"},
    {"clean.samples", "clean.unwrap", "clean.kanripo", "clean.daizhige", "clean.wikitext"},
    {"clean.containers", "clean.summary"},
    {"clean.profiles"},
    {"clean.options"},
    {"clean.rules"},
    {"clean.page"},
    {"readers", "tokenizers", "decompress"},
    {"sources", "tokens"},
    {"cleaning"},
    {"raw", "counting", "pieces", "records"},
    {"texts"},
    {"encode"},
    {"assembly"},
    {"reuse"},
    {"tasks"},
    {"export", "export.interface"},
    {"export.stream"},
    {"export.comparison", "export.nanogpt", "export.megatron", "export.llmc", "export.datatrove"},
    {"export.hdf5_int32", "export.litdata"},
    {"parts"},
    {"transfer"},
    {
        "download",
        "corpus",
        "train_tokenizer",
        "tokenize",
        "status",
        "doctor",
        "schedule",
        "inspection",
        "export.formats",
    },
    {"state", "recipe"},
    {"status"},
    {"chain"},
    {"plan"},
    {"refresh"},
    {"schedule"},
    {"commands", "upkeep"},
)
MODEL_MAY_IMPORT = {"tokens", "tokenizers", "artifact", "manifest", "files", "errors"}
HEAVY = ("torch", "h5py", "numpy", "tiktoken", "sentencepiece", "matplotlib", "requests", "rich", "fastapi")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "pipeline").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def rooms_of(path: Path) -> set[str]:
    known = {room(module) for module in modules("pipeline")} - {""}
    # `tokenizers` is a package of others' too
    return {name.removeprefix("pipeline.") for name in imported(path) if name.startswith("pipeline.")} & known


def test_every_room_of_the_pipeline_imports_only_from_its_own_floor_or_below() -> None:
    level = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    for path in modules("pipeline"):
        name = room(path)
        if not name:
            continue
        assert name in level, f"{name} has no floor yet"
        above = {other for other in rooms_of(path) if level[other] > level[name]}
        assert not above, f"{name} imports from above: {above}"


def test_the_pipeline_never_imports_the_model_or_torch() -> None:
    for path in modules("pipeline"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & {"model", "torch", "cli"}, path


def test_the_model_imports_only_the_rooms_it_may_and_its_commands_what_the_command_line_is_made_of() -> None:
    for path in modules("model"):
        more = {"console", "commands", "counting"} if path.name == "commands.py" else set()
        assert rooms_of(path) <= MODEL_MAY_IMPORT | more, path


@pytest.mark.parametrize(
    ("calls", "only"), [(("os.rename", "os.replace", "os.fsync", ".rename("), "files.py"), (("fcntl",), "locks.py")]
)
def test_only_files_renames_and_syncs_and_only_locks_locks(calls: tuple[str, ...], only: str) -> None:
    for path in [*modules("pipeline"), *modules("model"), ROOT / "cli.py"]:
        text = path.read_text(encoding="utf-8")
        assert path.name == only or not any(call in text for call in calls), path


def loaded_after(code: str) -> set[str]:
    script = (
        f"import sys\nsys.argv = ['cli.py']\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('\\n'.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.splitlines()}


def test_help_loads_nothing_heavy() -> None:
    assert not loaded_after("import cli; cli.main(['--help'])") & set(HEAVY)


@pytest.mark.parametrize("command", ["clean", "tokenize"])
def test_text_commands_never_load_torch(command: str, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("第一回　起\n话说天下大势。分久必合！\n第二回　承\n却说次日天明。众人起身？\n", encoding="utf-8")
    root = str(tmp_path / "artifacts")
    steps = {
        "clean": f"code = cli.main(['--artifacts', {root!r}, 'clean', {str(book)!r}, '--name', 'book'])",
        "tokenize": (
            f"a = ['--artifacts', {root!r}]\n"
            f"cli.main([*a, 'clean', {str(book)!r}, '--name', 'book', '--unit', 'sentence'])\n"
            "cli.main([*a, 'train-tokenizer', 'book', '--kind', 'char'])\n"
            "code = cli.main([*a, 'tokenize', 'book', '--val-fraction', '0.5', '--jobs', '1'])"
        ),
    }
    assert "torch" not in loaded_after(f"import cli\n{steps[command]}\nassert code == 0")


def test_no_file_is_a_catch_all() -> None:
    for path in [*modules("pipeline"), *modules("model")]:
        assert path.stem not in {"utils", "util", "helpers", "common", "misc", "base"}
