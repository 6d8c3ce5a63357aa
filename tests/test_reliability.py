"""docs/reliability.md lists every promise, and names no test that there is not."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TEXT = (HERE.parent / "docs/reliability.md").read_text(encoding="utf-8")


def test_every_row_of_the_list_of_faults_is_there() -> None:
    assert re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE) == [str(row) for row in range(1, 22)]


def test_every_promise_names_a_test_that_exists() -> None:
    rows = re.findall(r"^\| \d* ?\|.*\|$", TEXT.partition("## Promises")[2], re.MULTILINE)
    assert len(rows) >= 21
    for row in rows:
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row)
        assert named or row.startswith("| | fault"), row
        for file, test in named:
            (path,) = HERE.rglob(file)
            source = path.read_text(encoding="utf-8")
            assert re.search(rf"^(def {test}\(|{test} = )", source, re.MULTILINE), f"{file} has no {test}"


def test_every_command_it_quotes_is_there() -> None:
    command = r'`(?:python -m pytest -m "" |python )?((?:\.ci|tests|benchmarks)/[\w./]+)'
    for path in re.findall(command, TEXT):
        assert (HERE.parent / path).exists(), path
