"""Code of a user's own decides nothing but its numbers, and its files are known by their content."""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_trial

from normbench.config import user_code
from normbench.config.experiment import Execute
from normbench.sweep import run

Cli = Callable[..., Any]
NORM = "from normbench.norms.group import group\n\ndef f():\n    return group(groups=2, eps=1e-5)\n"
LAYER = """
from torch import nn
from normbench.norms.api import Normalization

class Layer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        {first}
    def forward(self, x):
        {always}
        return x

def f():
    {function}
    return Normalization(make_layer=Layer)
"""
CONFIG = """
name: mine
trial:
  dataset: {name: folder, folder: tiny, image_size: 8}
  model: {name: resnet8, width: 0.25}
  batch_size: 10
  epochs: 1
sweep: {norm: ["my_norms:f"]}
execute: {executor: serial}
"""


@pytest.fixture
def write(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Put a file into the current directory, from which ``my_norms`` and ``beside`` are imported anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NORMBENCH_DATA", str(tiny_data))
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.yaml").write_text(CONFIG)

    def forget() -> None:
        for name in [
            name for name in sys.modules if name.partition(".")[0] in ("my_norms", "beside", "pack")
        ]:
            del sys.modules[name]

    def put(content: str, name: str = "my_norms.py") -> Path:
        forget()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
        return tmp_path / name

    yield put
    forget()


ENDINGS = {
    "import sys; sys.exit()": "SystemExit",
    "import sys; sys.exit(0)": "SystemExit: 0",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "import sys; sys.exit('the text')": "SystemExit: the text",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise BaseException('none of ours')": "BaseException: none of ours",
    "raise GeneratorExit": "GeneratorExit",
    "import argparse; p = argparse.ArgumentParser(); p.add_argument('x'); p.parse_args()": "SystemExit: 2",
    "from normbench.cli.app import main; main(['--version'])": "SystemExit: 0",
    "input()": "EOFError: EOF when reading a line",
}


@pytest.mark.parametrize("place", ["module", "function", "layer", "pass"])
@pytest.mark.parametrize(("statement", "words"), ENDINGS.items(), ids=ENDINGS)
def test_what_would_end_the_process_is_refused_by_name_before_anything_trains(
    write: Callable[..., Path], cli: Cli, statement: str, words: str, place: str
) -> None:
    places = {"function": "pass", "layer": "pass", "pass": "pass"}
    if place == "module":
        write(f"{statement}\n{NORM}")
    else:
        places[place] = statement
        names = {"first": places["layer"], "always": places["pass"], "function": places["function"]}
        write(LAYER.format(**names))

    ended = cli("run", "mine.yaml", "--quiet")

    assert ended.code == 2, ended.err
    refusal = ended.err.splitlines()[-2]
    assert refusal.startswith("norm my_norms:f")
    assert f": {words}" in refusal or f" {words} (" in refusal
    assert ended.last == "fix that, then resume with: normbench run mine.yaml --quiet"
    assert not list(Path("results").glob("*/*.json"))


ARGUMENTS = "import argparse; p = argparse.ArgumentParser(); p.add_argument('--x'); p.parse_args()\n"
PRINTS = (
    "import os, subprocess, sys\nprint('by Python')\nos.write(1, b'by its number\\n')\n"
    "subprocess.run(['echo', 'by a program'])\nsys.__stdout__.write('by another name\\n')\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "pool"])
def test_what_it_prints_goes_to_stderr_and_it_has_no_arguments(
    write: Callable[..., Path], capfd: pytest.CaptureFixture[str], executor: str
) -> None:
    indented = PRINTS.replace("\n", "\n        ")
    write(PRINTS + ARGUMENTS + LAYER.format(first="pass", always=indented, function="print('called')"))
    before = sys.argv

    from normbench.cli.app import main

    with pytest.raises(SystemExit) as end:
        main(["run", "mine.yaml", "--quiet", "--json", "--executor", executor, "--workers", "1"])

    out, err = capfd.readouterr()
    assert end.value.code == 0, err
    assert json.loads(out)["counts"] == {"done": 1}
    for words in ("by Python", "by its number", "by a program", "called"):
        assert words in err
    assert sys.argv is before


def test_directory_and_signal_handlers_are_as_they_were(write: Callable[..., Path]) -> None:
    write(
        "import os, signal\nos.chdir('/')\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"signal.signal(signal.SIGINT, signal.SIG_IGN)\n{NORM}"
    )
    before = Path.cwd(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    run.prepare([tiny_trial(norm="my_norms:f")], Path(os.environ["NORMBENCH_DATA"]), print, Execute())

    assert (Path.cwd(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "pool"])
def test_a_layer_that_wants_to_end_the_process_while_it_trains_fails_its_own_trial(
    write: Callable[..., Path], cli: Cli, executor: str
) -> None:
    count = "self.count = getattr(self, 'count', 0) + 1; self.count < 4 or exit(0)"
    write(LAYER.format(first="pass", always=count, function="pass"))

    ended = cli(
        "run", "mine.yaml", "sweep.norm=['my_norms:f', batch]", "--quiet", "--executor", executor,
        "--workers", "1",
    )  # fmt: skip

    assert ended.code == 3, ended.err
    assert "1 done, 1 failed" in ended.out
    assert "SystemExit: 0" in ended.out
    assert not Path("results/mine/checkpoints").exists() or not any(
        Path("results/mine/checkpoints").iterdir()
    )


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (
            "from torch import nn\nclass f(nn.Module):\n    pass",
            "is a class of layers that takes no number of channels",
        ),
        ("from torch import nn\ndef f():\n    return nn.BatchNorm2d", "gives a type and not a Normalization"),
        (
            "from torch import nn\ndef f():\n    return nn.BatchNorm2d(8)",
            "gives a BatchNorm2d and not a Normalization",
        ),
        ("def f():\n    return lambda channels: None", "gives a function and not a Normalization"),
    ],
)
def test_what_is_no_normalization_is_told_with_the_line_that_makes_it_one(
    write: Callable[..., Path], tiny_data: Path, code: str, what: str
) -> None:
    write(code)
    with pytest.raises(run.Unusable, match=f"norm my_norms:f {what}: ") as refused:
        run.prepare([tiny_trial(norm="my_norms:f")], tiny_data, print, Execute())
    assert "return Normalization(make_layer=make)" in str(refused.value)
    assert "from normbench.norms.api import Normalization" in str(refused.value)

    write(
        "from torch import nn\nfrom normbench.norms.api import Normalization\n"
        "def f():\n    make = nn.BatchNorm2d\n    return Normalization(make_layer=make)\n"
    )
    run.prepare([tiny_trial(norm="my_norms:f")], tiny_data, print, Execute())


IMPORTS = (
    "import beside",
    "import beside as other",
    "from beside import scale",
    "def late():\n    from beside import scale",
    "try:\n    import beside\nexcept ImportError:\n    pass",
)


@pytest.mark.parametrize("statement", IMPORTS)
def test_a_module_beside_it_is_part_of_its_source(write: Callable[..., Path], statement: str) -> None:
    file = write(f"{statement}\n{NORM}")
    write("scale = 1", "beside.py")
    before = user_code.current("my_norms:f")
    write("scale = 2", "beside.py")
    after = user_code.current("my_norms:f")

    assert list(before.files) == ["my_norms", "beside"]
    assert before.first == after.first == hashlib.sha256(file.read_bytes()).hexdigest()
    assert before.sha256 != after.sha256


def test_modules_of_its_package_are_and_those_of_others_are_not(write: Callable[..., Path]) -> None:
    write("import torch\nfrom .inner import deep\nfrom normbench import norms\n", "pack/__init__.py")
    write("", "pack/inner/__init__.py")
    write("from .. import twin\nfrom ..further import x\nimport beside", "pack/inner/deep.py")
    write("", "pack/twin.py")
    write("x = 1", "pack/further.py")
    write("import json", "beside.py")
    write("", "pack/unused.py")

    files = user_code.current("pack.inner.deep:f").files

    assert next(iter(files)) == "pack.inner.deep"
    assert set(files) == {"pack", "pack.inner", "pack.inner.deep", "pack.twin", "pack.further", "beside"}


def test_a_module_that_is_not_there_has_no_source_and_one_that_is_no_python_has_one(
    write: Callable[..., Path],
) -> None:
    assert user_code.current("nowhere:f").files == {}
    assert user_code.current("json.nowhere:f").files == {}
    write("this is (no Python", "my_norms.py")
    assert list(user_code.current("my_norms:f").files) == ["my_norms"]


def test_the_source_is_that_of_the_code_that_runs_and_not_of_what_was_written_since(
    write: Callable[..., Path], tiny_data: Path
) -> None:
    """A worker lives for many trials, and imports a module once."""
    write(f"from beside import scale\n{NORM}")
    write("scale = 1", "beside.py")
    run.prepare([tiny_trial(norm="my_norms:f")], tiny_data, print, Execute())
    imported = user_code.imported("my_norms:f").sha256
    assert imported == user_code.current("my_norms:f").sha256

    Path("beside.py").write_text("scale = 2")  # and everything stays imported
    run.prepare([tiny_trial(norm="my_norms:f")], tiny_data, print, Execute())
    assert user_code.imported("my_norms:f").sha256 == imported != user_code.current("my_norms:f").sha256

    write("scale = 2", "beside.py")  # nothing is
    run.prepare([tiny_trial(norm="my_norms:f")], tiny_data, print, Execute())
    assert user_code.imported("my_norms:f").sha256 == user_code.current("my_norms:f").sha256
