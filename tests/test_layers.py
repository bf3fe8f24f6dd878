"""The house keeps its order: who imports whom, what stays out of the product, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("flows", "pipelines", "monitoring", "models")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LONGEST = 350

WHERE = {
    "prefect": {path for path in FILES if path.is_relative_to(ROOT / "flows")},
    "evidently": {ROOT / "monitoring" / name for name in ("drift.py", "dashboard.py", "panels.py")},
    "mlflow": {ROOT / "pipelines" / name for name in ("registry.py", "tracking.py", "packing.py")},
    "onnx": {ROOT / "pipelines" / "export.py"},
    "onnxruntime": {ROOT / "pipelines" / name for name in ("export.py", "edge.py")},
}
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
PIPES = {ROOT / "pipelines" / "federated" / "engines" / "workers.py"}
"""What a process and its own forks tell each other through a pipe lies in no file that anybody could alter."""
UNSAFE_CALLS = {"torch.load", "torch.save", "pd.read_pickle", "pandas.read_pickle"}
HEAVY = ("torch", "mlflow", "prefect", "evidently")


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level names of everything that a file imports, wherever in the file it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_files_are_found() -> None:
    assert {path.parts[len(ROOT.parts)] for path in FILES} == set(FOLDERS)
    assert len(FILES) > 50


def test_imports_go_one_way() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    said = subprocess.run([str(script), "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stdout
    assert "0 broken" in said.stdout


@pytest.mark.parametrize("package", WHERE)
def test_each_big_library_is_imported_only_in_its_own_rooms(package: str) -> None:
    importers = {path for path in FILES if package in imported(ast.parse(path.read_text()))}
    assert importers
    assert {name(path) for path in importers - WHERE[package]} == set()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_file_of_the_product_can_run_code_from_data(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert UNSAFE & set(imported(tree)) == ({"pickle"} if path in PIPES else set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS, ast.unparse(node)
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle":
                    assert isinstance(keyword.value, ast.Constant), ast.unparse(node)
                    assert keyword.value.value is False, ast.unparse(node)


def test_no_file_is_longer_than_one_idea() -> None:
    lines = {name(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: count for path, count in lines.items() if count > LONGEST} == {}


def test_every_file_says_what_room_it_is() -> None:
    assert [name(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_asking_for_help_costs_no_heavy_import() -> None:
    code = f"""
import sys
from typer.main import get_command
from typer.testing import CliRunner
from flows.cli import app
for verb in ("", *get_command(app).commands):
    said = CliRunner().invoke(app, [*([verb] if verb else []), "--help"])
    assert said.exit_code == 0 and "Usage" in said.output, (verb, said.output)
print(sorted(set(sys.modules) & set({HEAVY!r})))
"""
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert said.stdout.strip() == "[]"
