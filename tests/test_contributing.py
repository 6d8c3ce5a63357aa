"""CONTRIBUTING's worked example is done as written, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TABLE = "normbench/config/catalog/norms.py"
CHECK = """
import torch
from normbench.norms.api import build
from normbench.config.trial import Trial

def layer(norm):
    return build(Trial.model_validate({"norm": norm}).norm, None).make_layer(8)

x = torch.randn(3, 8, 5, 5)
for name in ("halves", "my_norms:halves"):
    torch.testing.assert_close(layer(name)(x), layer({"name": "group", "groups": 2})(x))
print("as group normalization with two groups")
"""


def python(directory: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(directory)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_is_one_file_and_one_line(tmp_path: Path) -> None:
    file, line = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    shutil.copytree(ROOT / "normbench", tmp_path / "normbench", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "normbench/norms/halves.py").write_text(file)
    (tmp_path / "my_norms.py").write_text(file)  # without the line in the table: a method of one's own
    table = (tmp_path / TABLE).read_text()
    place = '    Method(\n        "switchable",'
    assert table.count(place) == 1
    (tmp_path / TABLE).write_text(table.replace(place, line + place))
    assert "halves: each half of a sample's channels" in python(tmp_path, "-m", "normbench", "list", "norms")
    assert python(tmp_path, "-c", CHECK).startswith("as group normalization with two groups")


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60
