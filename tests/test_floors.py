"""The map of the architecture, and the test that the code keeps to it.

A module imports only from floors below its own: not from above, not from its neighbours, not inside a
function either. What stands under ``if TYPE_CHECKING:`` is for readers and not imported when the code runs,
so it is free.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import normbench
from normbench.config.catalog.datasets import DATASETS, WHITENINGS
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.catalog.figures import FIGURES
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import CLIPS, NORMS
from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.registry import Table
from normbench.training.provenance import ONLOOKERS


def behind(*tables: Table[Any]) -> tuple[str, ...]:
    """The modules that tables' entries live in, so that a new entry has its floor already."""
    targets = {entry.target.partition(":")[0] for table in tables for entry in table.values()}
    targets -= {"normbench.norms.api"}  # which has the clip that does nothing
    return tuple(sorted(target.removeprefix("normbench.") for target in targets))


# from the ground up; a new module goes to the lowest floor that is above everything it imports
FLOORS: tuple[tuple[str, ...], ...] = (
    # the version, and what knows nothing of the rest
    ("",),
    (
        "calls",
        "cgroups",
        "dispatch",
        "filesystems",
        "memory",
        "process",
        "signals",
        "stats",
        "streams",
        "plots.published",
    ),
    ("tape", "graphs", "user_code"),
    ("lookup",),
    # the tables: what exists, by name, without loading it
    ("norms", "models", "data", "executors", "inference", "plots", "located"),
    # what a trial is, and how YAML is read and checked
    ("trial", "validation", "yaml_strict", "plots.style"),
    # what a trial leaves behind; the seam between networks and methods
    (
        "records",
        "cells",
        "bases",
        "defaults",
        "norms.normalization",
        "norms.kernels",
        "norms.shares",
        "norms.fused_kernels",
    ),
    # what a trial is made of
    ("config", "executors.attempts", "norms.fused", "plots.panels"),
    ("executors.workers", "labels", "norms.paths", "plans"),
    ("checkpoints", "optim", "provenance", "progress", "devices", "recording"),
    ("norms.maps", "norms.running"),
    ("norms.moments", "norms.weights", "data.cache", "models.blocks", *behind(DATASETS)),
    (*behind(NORMS, CLIPS), *behind(MODELS)),
    ("models.network", "data.decoded", *behind(EXECUTORS)),
    # the training loop; how long it may take
    ("data.whitening", "inference.running"),
    ("data.augment", "update"),
    ("inference.evaluation", "probe", "propagation", "followers"),
    behind(EVALUATIONS),
    ("train", "estimate", "profiling"),
    ("room", "endless", "changes"),
    ("speeds",),
    ("gains",),
    ("sweep",),
    # figures
    ("plots.caption", "plots.figure", "plots.samples", "plots.values"),
    ("plots.lines", "plots.costs"),
    behind(FIGURES),
    # the command line
    ("results", "console", "listing", "tabular", "exits"),
    ("drawing", "export", "report", "costs"),
    ("cli",),
    ("__main__",),
)

MAY_IMPORT_TORCH = {
    *("norms.fused", "norms.kernels", "norms.maps", "norms.moments", "norms.normalization", "norms.paths"),
    *("norms.running", "norms.shares", "norms.weights"),
    *behind(NORMS, CLIPS),
    *("models.network", "models.blocks", *behind(MODELS)),
    *("data.augment", "data.whitening", "propagation"),
    *("inference.evaluation", "inference.running", *behind(EVALUATIONS)),
    *("optim", "checkpoints", "devices", "progress", "provenance", "train", "probe", "profiling"),
    *("update", "recording", "tape", "graphs", "calls", "dispatch", "process", "followers"),
    "endless",
}

# functions that load torch when, and only when, it is time to compute
LAZY = {
    ("sweep", "prepare"),
    ("sweep", "_has_kernels"),
    ("sweep", "load"),
    ("sweep", "work"),
    ("room", "_memories"),
    ("speeds", "update_in_turn"),
    ("gains", "_memory"),
    ("estimate", "estimate"),
    ("costs", "measure"),
    ("data.cifar", "official"),
    ("data.cifar", "_download"),
}

TABLES: dict[str, tuple[Table[Any], ...]] = {
    "norms": (NORMS, CLIPS),
    "models": (MODELS,),
    "inference": (EVALUATIONS,),
    "data": (DATASETS, WHITENINGS),
    "executors": (EXECUTORS,),
    "plots": (FIGURES,),
}

PACKAGE = Path(normbench.__file__).parent
FLOOR = {module: number for number, floor in enumerate(FLOORS) for module in floor}


class Import(NamedTuple):
    """``importer`` imports ``module``, inside ``function`` (None: when it is loaded itself)."""

    importer: str
    function: str | None
    module: str
    line: int


def _short(path: Path) -> str:
    """normbench/data/cache.py -> data.cache; a package by its folder; normbench/__init__.py -> ''."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_short(path): path for path in PACKAGE.rglob("*.py")}
EVERY_MODULE = pytest.mark.parametrize("module", sorted(MODULES.keys() & FLOOR))


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Full names of the modules that a statement loads, parents included."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        assert node.level == 0, "a relative import"
        assert node.module is not None
        below = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [node.module] + [name for name in below if name.removeprefix("normbench.") in MODULES]
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def imports(importer: str) -> list[Import]:
    """Every import of a module that runs, whether when it is loaded or in a function."""
    found: list[Import] = []

    def visit(node: ast.AST, function: str | None) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.orelse:
                visit(child, function)
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.extend(
                Import(importer, function, name, node.lineno) for name in dict.fromkeys(_imported(node))
            )
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = function or node.name
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(MODULES[importer].read_text(encoding="utf-8")), None)
    return found


def _own(name: str) -> str | None:
    """The short name of a module of this package, or None for another's."""
    return name.removeprefix("normbench").removeprefix(".") if name.split(".")[0] == "normbench" else None


def test_code_that_is_no_part_of_the_hash_is_loaded_by_no_training() -> None:
    """A checkpoint belongs to the code that made it: what that is must not be told by hand alone."""
    tables = behind(NORMS, CLIPS, MODELS, DATASETS, WHITENINGS, EVALUATIONS)
    waiting, seen = ["train", *tables], set[str]()
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [name for one in imports(module) if (name := _own(one.module)) is not None]

    assert {"norms.kernels", "update", "user_code"} <= seen
    assert not {module for module in seen if module.partition(".")[0] in ONLOOKERS}


def test_every_module_has_one_floor() -> None:
    listed = [module for floor in FLOORS for module in floor]
    assert sorted(listed) == sorted(set(listed)), "a module is listed twice"
    assert not MODULES.keys() - listed, "modules without a floor: put each above everything it imports"
    assert not set(listed) - MODULES.keys(), "floors of modules that do not exist"


@EVERY_MODULE
def test_imports_go_down(module: str) -> None:
    """(A module's own packages are loaded before it, and may be imported by it.)"""
    for one in imports(module):
        target = _own(one.module)
        if target is not None and target != module:
            floor = FLOOR.get(target, len(FLOORS))
            place = f"{MODULES[module]}:{one.line} imports {one.module} from floor {floor}"
            assert floor < FLOOR[module], f"{place}, and stands on {FLOOR[module]} itself"


@EVERY_MODULE
def test_torch_is_loaded_by_those_that_compute(module: str) -> None:
    """Directly or through another module; the others only inside the functions named above."""
    if module in MAY_IMPORT_TORCH:
        return
    for one in imports(module):
        heavy = one.module.split(".")[0] in ("torch", "torchvision") or _own(one.module) in MAY_IMPORT_TORCH
        if heavy and _own(one.module) != module:
            place = f"{MODULES[module]}:{one.line} imports {one.module}"
            assert (module, one.function) in LAZY, f"{place} and so loads torch"


def test_the_exceptions_are_in_use() -> None:
    used = {(one.importer, one.function) for module in MODULES for one in imports(module)}
    assert used >= LAZY
    assert set(MODULES) >= MAY_IMPORT_TORCH


@EVERY_MODULE
def test_modules_are_loaded_by_name_in_one_place_only(module: str) -> None:
    """Through the tables: an import that a test cannot read would be an import that it cannot check."""
    source = MODULES[module].read_text(encoding="utf-8")
    assert module == "lookup" or ("import_module" not in source and "__import__" not in source)


@pytest.mark.parametrize("package", TABLES)
def test_every_file_of_a_package_is_in_its_table_or_its_list_of_shared_files(package: str) -> None:
    files = {module.removeprefix(f"{package}.") for module in MODULES if module.startswith(f"{package}.")}
    targets = {f"normbench.{module}" for module in behind(*TABLES[package])}
    listed = {target.removeprefix(f"normbench.{package}.") for target in targets}
    shared = set(importlib.import_module(f"normbench.{package}").SHARED)
    assert not listed & shared
    assert files == listed | shared


def test_every_package_has_a_table() -> None:
    assert {path.parent.name for path in PACKAGE.rglob("__init__.py")} == {"normbench", *TABLES}


@pytest.mark.parametrize("package", TABLES)
def test_there_is_code_behind_every_entry(package: str) -> None:
    for table in TABLES[package]:
        assert all(entry.load() is not None for entry in table.values())


@pytest.mark.parametrize(
    "script",
    [
        "from normbench.cli.app import main; main(['--help'])",
        "from normbench import config; [config.load(path) for path in Path('configs').glob('*.yaml')]",
        "from normbench.records import Store; Store(Path('nothing')).load()",
        "from normbench.report.figures import FIGURES; [entry.load() for entry in FIGURES.values()]",
        "import normbench.sweep.run, normbench.sweep.executors.pool",
    ],
    ids=["--help", "config", "records", "plots", "sweep"],
)
def test_what_does_not_compute_does_not_load_torch(script: str) -> None:
    """It takes more than a second, which nobody who asks for help should wait."""
    check = (
        "import atexit, sys; from pathlib import Path\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check + script], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"


# that the tests above can fail


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", [(None, "torch"), (None, "torch.nn")]),
        ("def f():\n    def g():\n        import torch", [("f", "torch")]),
        ("from normbench import sweep, x", [(None, "normbench"), (None, "normbench.sweep.run")]),
        ("from normbench.report.figures import X", [(None, "normbench"), (None, "normbench.report.figures")]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import json", [(None, "json")]),
        ("class A:\n    async def f(self):\n        import torch", [("f", "torch")]),
    ],
)
def test_the_walk_finds_every_kind_of_import(
    source: str, expected: list[tuple[str | None, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setitem(MODULES, "module", path)
    assert [(one.function, one.module) for one in imports("module")] == expected


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("records", "from normbench import sweep"),
        ("cells", "import normbench.records"),
        ("trial", "def f():\n    from normbench.report.figures import style"),
    ],
    ids=["upwards", "sideways", "in a function"],
)
def test_a_wrong_import_is_found(
    module: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setitem(MODULES, module, path)
    with pytest.raises(AssertionError, match="stands on"):
        test_imports_go_down(module)


@pytest.mark.parametrize(
    "source", ["import torch", "from normbench import train", "def f():\n    import torch"]
)
def test_torch_in_the_wrong_place_is_found(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    monkeypatch.setitem(MODULES, "cli", path)
    with pytest.raises(AssertionError, match="loads torch"):
        test_torch_is_loaded_by_those_that_compute("cli")
