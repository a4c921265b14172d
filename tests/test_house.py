"""Rules of the code base: the order of imports, modules that stay unloaded, sizes of files and functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import is_slow

ROOT = Path(__file__).resolve().parent.parent

# A folder (or file) imports only from itself and from those to its left.
ORDER = {
    "pipeline": (
        *("errors", "runtime", "store", "readers", "sources", "clean", "tokenizers", "tokens"),
        *("export", "refresh", "start", "report", "maintenance", "commands", "api"),
    ),
    "model": (
        *("settings", "config", "presets", "device", "network", "runs", "exchange", "generation"),
        *("training", "serving", "commands", "api"),
    ),
}
# Folders of pipeline that model may import; model.commands and model.api may import all of them.
MODEL_MAY_IMPORT = {"errors", "runtime", "store", "tokenizers", "tokens"}
MAX_FILES = {"pipeline": 4, "model": 6}  # directly in a package, with __init__.py
MAX_FOLDER_FILES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 20, 400, 60
HEAVY = ("torch", "h5py", "numpy", "tiktoken", "sentencepiece", "matplotlib", "requests", "rich", "starlette")


def module_paths(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in ORDER for path in module_paths(package)}


def imported_modules(path: Path) -> set[str]:
    """Return the modules that a file imports, at its top or inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            names |= submodules or {node.module}
    return names


def wrong_imports(package: str, imports: dict[str, set[str]]) -> list[str]:
    """Describe the imports of a package, by module, that break the rule."""
    order, wrong = ORDER[package], []
    for name, imported in imports.items():
        folder = name.split(".")[1] if "." in name else ""
        for other in imported:
            top, _, rest = other.partition(".")
            target = rest.split(".")[0]
            if top == package and folder and target:
                if order.index(target) > order.index(folder):
                    wrong.append(f"{name} imports {other}, which is to its right")
            elif (package, top) == ("model", "pipeline"):
                if folder not in ("commands", "api") and target not in MODEL_MAY_IMPORT:
                    wrong.append(f"{name} imports {other}; only model.commands and model.api may")
            elif top in ("cli", "model", "pipeline", "benchmarks", "tests") and top != package:
                wrong.append(f"{name} imports {other}")
            elif (package, top) == ("pipeline", "torch"):
                wrong.append(f"{name} imports torch")
    return wrong


def import_cycles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the import cycles, each as a path that ends with its first module."""
    finished: set[str] = set()
    cycles: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycles.append([*path[path.index(name) :], name])
        elif name not in finished:
            for other in sorted(imports.get(name, ())):
                visit(other, [*path, name])
            finished.add(name)

    for name in sorted(imports):
        visit(name, [])
    return cycles


IMPORTS = {name: imported_modules(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_imports_only_from_itself_and_folders_to_its_left(package: str) -> None:
    imports = {name: imported for name, imported in IMPORTS.items() if name.split(".")[0] == package}
    assert not wrong_imports(package, imports)


def test_there_is_no_import_cycle() -> None:
    assert not import_cycles({name: imported - {name} for name, imported in IMPORTS.items()})


@pytest.mark.parametrize(
    ("package", "name", "other"),
    [
        ("pipeline", "pipeline.store.files", "pipeline.tokens.stage"),
        ("pipeline", "pipeline.errors", "pipeline.runtime.progress"),
        ("pipeline", "pipeline.clean.stage", "torch"),
        ("pipeline", "pipeline.refresh.refresh", "model.training.stage"),
        ("model", "model.network.gpt", "model.training.trainer"),
        ("model", "model.training.stage", "pipeline.clean.stage"),
        ("model", "model.generation.engine", "cli"),
    ],
)
def test_a_planted_import_that_breaks_the_rule_is_reported(package: str, name: str, other: str) -> None:
    assert wrong_imports(package, {name: {other}})


def test_a_planted_cycle_is_reported() -> None:
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("package", ORDER)
def test_folders_stay_small(package: str) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= MAX_FILES[package]
    for folder in {path.parent for path in module_paths(package)}:
        assert len([path for path in folder.iterdir() if path.is_file()]) <= MAX_FOLDER_FILES, folder


def test_files_and_functions_stay_short() -> None:
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_FILE_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, f"{path}: {node.name}"


@pytest.mark.parametrize(
    ("calls", "only"), [(("os.rename", "os.replace", "os.fsync", ".rename("), "files.py"), (("fcntl",), "locks.py")]
)
def test_only_files_py_renames_and_syncs_and_only_locks_py_locks(calls: tuple[str, ...], only: str) -> None:
    for path in [*module_paths("pipeline"), *module_paths("model"), ROOT / "cli.py"]:
        text = path.read_text(encoding="utf-8")
        assert path.name == only or not any(call in text for call in calls), path


def loaded_after(code: str) -> set[str]:
    """Run code in a new interpreter and return the top-level modules that it loaded."""
    script = (
        f"import sys\nsys.argv = ['cli.py']\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nprint('\\n'.join(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in process.stdout.splitlines()}


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
    for path in [*module_paths("pipeline"), *module_paths("model")]:
        assert path.stem not in {"utils", "util", "helpers", "common", "misc", "base"}


def test_every_test_folder_keeps_fast_tests() -> None:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    fast_folders = {path.parent for path in files if not is_slow(path.relative_to(ROOT).as_posix())}
    assert {path.parent for path in files} == fast_folders


def test_a_pattern_of_slow_tests_names_files_or_tests() -> None:
    assert is_slow("tests/test_chain.py")
    assert is_slow("tests/pipeline/refresh/test_refresh_faults.py::test_any[case-1]")
    assert not is_slow("tests/pipeline/refresh/test_state.py")
