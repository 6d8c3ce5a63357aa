"""The tables as a user reads them; over the tables themselves, so that every entry is shown."""

import pytest
import typer

from normbench.cli.app import app
from normbench.cli.catalog import TABLES, tables
from normbench.config.registry import ExtensibleRegistry, UnknownName


@pytest.mark.parametrize("name", TABLES)
def test_every_entry_is_listed_with_its_options(name: str) -> None:
    lines = tables(name).splitlines()
    told = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert told == [*TABLES[name], *(["module"] if isinstance(TABLES[name], ExtensibleRegistry) else [])]
    for entry in TABLES[name].values():
        assert f"{entry.name}: {entry.summary}" in lines
        for key, option in entry.options.items():
            assert any(line.startswith(f"    {key} = ") and option.meaning in line for line in lines)


def test_all_tables_come_with_headings() -> None:
    assert [line for line in tables(None).splitlines() if line and line[0] != " "] == [
        f"{name}:" for name in TABLES
    ]


def test_the_help_names_all_tables() -> None:
    command = typer.main.get_command(app).commands["list"]  # type: ignore[attr-defined]
    assert command.params[0].help == f"{', '.join(TABLES)}; or all"


def test_a_choice_lists_what_can_be_chosen() -> None:
    assert "(paper, official)" in tables("norms")


def test_an_unknown_list_names_the_nearest() -> None:
    with pytest.raises(
        UnknownName,
        match=r"unknown list 'modles' \(did you mean 'models'\?\); known: norms, clips, tasks, models",
    ):
        tables("modles")


@pytest.mark.parametrize("name", TABLES)
def test_the_singular_will_do(name: str) -> None:
    assert tables(name.removesuffix("s")) == tables(name)
