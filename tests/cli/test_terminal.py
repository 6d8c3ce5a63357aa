import json

from normbench.cli.terminal import as_json, as_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert as_table(("a", "bb"), [("long", "1"), ("s", "22")]) == "a     bb\nlong  1\ns     22\n"


def test_without_rows_the_headings_remain() -> None:
    assert as_table(("a", "b"), []) == "a  b\n"


def test_no_cell_breaks_a_line_or_reaches_the_terminal() -> None:
    text = as_table(("a",), [("x\ny",), ("\x1b[31m[red]",)])
    assert "\x1b" not in text
    assert text.splitlines() == ["a", "x\\ny", "\\x1b[31m[red]"]


def test_json_is_ascii() -> None:
    text = as_json({"é": "\x1b"})
    assert text.isascii()
    assert "\x1b" not in text
    assert json.loads(text) == {"é": "\x1b"}
