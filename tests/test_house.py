"""The house rules that a reader relies on: who may import whom, what stays unloaded, what is never named."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A folder (or file) imports only itself and what stands to its left.
ORDER = {
    "pipeline": (
        *("errors", "runtime", "store", "readers", "sources", "clean", "tokenizers", "tokens"),
        *("export", "refresh", "maintenance", "commands", "api"),
    ),
    "model": (
        *("config", "presets", "device", "network", "runs", "exchange", "generation"),
        *("training", "serving", "commands", "api"),
    ),
}
MODEL_MAY_IMPORT = {"errors", "runtime", "store", "tokenizers", "tokens"}  # of pipeline; commands and api: anything
MOST_FILES = {"pipeline": 4, "model": 6}  # directly in a package, __init__.py included
HEAVY = ("torch", "h5py", "numpy", "tiktoken", "sentencepiece", "matplotlib", "requests", "rich", "fastapi")


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in ORDER for path in modules(package)}


def imported(path: Path) -> set[str]:
    """Modules of pipeline, model and others that a file imports, at its top or inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            names |= submodules or {node.module}
    return names


def wrong_imports(package: str, modules: dict[str, set[str]]) -> list[str]:
    """Imports that point to the right of `ORDER`, or out of the package to where it may not look."""
    order, wrong = ORDER[package], []
    for name, imports in modules.items():
        folder = name.split(".")[1] if "." in name else ""
        for other in imports:
            top, _, rest = other.partition(".")
            target = rest.split(".")[0]
            if top == package and folder and target:
                if order.index(target) > order.index(folder):
                    wrong.append(f"{name} imports {other}, which stands to its right")
            elif (package, top) == ("model", "pipeline"):
                if folder not in ("commands", "api") and target not in MODEL_MAY_IMPORT:
                    wrong.append(f"{name} imports {other}; only model.commands and model.api may")
            elif top in ("cli", "model", "pipeline", "benchmarks", "tests") and top != package:
                wrong.append(f"{name} imports {other}")
            elif (package, top) == ("pipeline", "torch"):
                wrong.append(f"{name} imports torch")
    return wrong


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Import circles, each as the path that leads back to its first module."""
    finished: set[str] = set()
    found: list[list[str]] = []

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
        elif name not in finished:
            for other in sorted(imports.get(name, ())):
                visit(other, [*trail, name])
            finished.add(name)

    for name in sorted(imports):
        visit(name, [])
    return found


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


@pytest.mark.parametrize("package", ORDER)
def test_a_folder_imports_only_itself_and_folders_to_its_left(package: str) -> None:
    assert not wrong_imports(package, {name: of for name, of in IMPORTS.items() if name.split(".")[0] == package})


def test_no_two_files_import_each_other() -> None:
    assert not circles({name: of - {name} for name, of in IMPORTS.items()})


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
def test_the_rule_sees_an_import_that_breaks_it(package: str, name: str, other: str) -> None:
    assert wrong_imports(package, {name: {other}})


def test_the_rule_sees_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == [["a", "b", "c", "a"]]


@pytest.mark.parametrize("package", ORDER)
def test_folders_stay_small(package: str) -> None:
    assert len(list((ROOT / package).glob("*.py"))) <= MOST_FILES[package]
    for folder in {path.parent for path in modules(package)}:
        assert len([path for path in folder.iterdir() if path.is_file()]) <= 20, folder


def test_files_and_functions_stay_short() -> None:
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


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
