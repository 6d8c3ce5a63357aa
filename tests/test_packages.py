"""What holds for all packages; which may import which is a contract in pyproject.toml (``lint-imports``)."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from normbench.config.catalog.clips import CLIPS
from normbench.config.catalog.datasets import DATASETS, WHITENINGS
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.catalog.figures import FIGURES
from normbench.config.catalog.models import MODELS
from normbench.config.catalog.norms import NORMS
from normbench.config.catalog.statistics import EVALUATIONS
from normbench.config.registry import Registry

ROOT = Path(__file__).parents[1]
TABLES: dict[str, Registry[Any]] = {
    "norms": NORMS,
    "clips": CLIPS,
    "models": MODELS,
    "datasets": DATASETS,
    "whitenings": WHITENINGS,
    "statistics": EVALUATIONS,
    "executors": EXECUTORS,
    "figures": FIGURES,
}


@pytest.mark.parametrize("table", TABLES)
def test_there_is_code_behind_every_entry(table: str) -> None:
    assert all(entry.load() is not None for entry in TABLES[table].values())


@pytest.mark.parametrize(
    "script",
    [
        "from normbench.cli.app import main; main(['--help'])",
        "from normbench.cli.app import main; main(['status', '--results', 'results'])",
        "from normbench.config.experiment import load; [*map(load, Path('configs').glob('*.yaml'))]",
        "from normbench.cli.app import main; from tempfile import TemporaryDirectory\n"
        "place = TemporaryDirectory(); main(['report', '--out', f'{place.name}/r.html'])",
        "from normbench.cli.app import main; main(['claims'])",
        "from normbench.cli.app import main; main(['compare', 'online_cpu'])",
        "from normbench.records import Store; Store(Path('nothing')).load()",
        "from normbench.config.catalog.figures import FIGURES; [entry.load() for entry in FIGURES.values()]",
        "import normbench.sweep.run, normbench.sweep.executors.pool",
    ],
    ids=["--help", "status", "config", "report", "claims", "compare", "records", "figures", "sweep"],
)
def test_what_does_not_compute_does_not_load_torch(script: str) -> None:
    """Loading it takes more than a second."""
    check = (
        "import atexit, sys; from pathlib import Path\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", check + script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"


def test_commands_that_judge_nothing_do_not_load_what_judges() -> None:
    """Loading it takes a quarter of a second."""
    script = "import sys; from normbench.cli import errors, status; print('scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("normbench.norms.normalization", "normbench.norms.api", "Normalization"),
        ("normbench.norms.moments", "normbench.norms.moment_norm", "MomentNorm"),
    ],
)
def test_old_names_that_methods_of_users_import_still_work(old: str, new: str, name: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=new):
        module = importlib.import_module(old)
    assert getattr(module, name) is getattr(importlib.import_module(new), name)
