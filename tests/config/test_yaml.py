import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from normbench.config.source import Position
from normbench.config.yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_bytes, write

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def value(text: str) -> Any:
    node, problems = read_bytes(text.encode(), "x.yaml")
    assert problems == []
    assert node is not None
    return node.plain()


def problems_of(raw: str | bytes) -> list[str]:
    return [str(each) for each in read_bytes(raw if isinstance(raw, bytes) else raw.encode(), "x.yaml")[1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("+1", 1),
        ("-0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("~", None),
        ("null", None),
        ("True", True),
        ("FALSE", False),
        *(
            (word, word)
            for word in ("no", "yes", "on", "off", "y", "N", "12:30", "1_000", "2024-01-01", "0b1", "=")
        ),
        ("'1'", "1"),
        ('"true"', "true"),
        ("0.10", 0.1),
        ("00.5", 0.5),
    ],
)
def test_plain_words_mean_what_the_core_schema_of_yaml_1_2_says(text, expected):
    read = value(f"x: {text}")["x"]
    assert read == expected
    assert type(read) is type(expected)


def test_not_a_number_is_understood_and_left_to_the_schema():
    assert math.isnan(value("x: .nan")["x"])


def test_an_alias_stands_for_its_value():
    assert value("a: &x {b: [1]}\nc: *x\nd: [*x]") == {"a": {"b": [1]}, "c": {"b": [1]}, "d": [{"b": [1]}]}


def test_a_byte_order_mark_is_skipped_and_not_counted():
    node, problems = read_bytes("\ufeffx: 1".encode(), "x.yaml")
    assert problems == []
    assert node is not None
    assert node.value["x"].key == Position("x.yaml", 1, 1, "x")


def test_every_value_knows_its_line_column_and_path():
    node, _ = read_bytes(b"a: 1\nb:\n  - {c: 2}\n", "x.yaml")
    assert node is not None
    c = node.value["b"].value[0].value["c"]
    assert c.key == Position("x.yaml", 3, 6, "b[0].c")
    assert c.position == Position("x.yaml", 3, 9, "b[0].c")


TOO_MANY = "more than 20000 values (an alias counts as often as it is used)"
CUT_SHORT = "while parsing a flow node: expected the node content, but found '<stream end>'"
NULL = "is not allowed in YAML, is the file UTF-16? Save it as UTF-8"
NO_TAG = "is not allowed, write a plain value"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "1:1: is empty"),
        ("# nothing\n", "1:1: is empty"),
        ("a: 010", "1:4: a: 010 can be octal or decimal, drop the leading zero or quote it"),
        ("a: -08", "1:4: a: -08 can be octal or decimal, drop the leading zero or quote it"),
        ("a: 1e999", "1:4: a: 1e999 is too large a number"),
        ("a: 9223372036854775808", "1:4: a: 9223372036854775808 is too large a number"),
        ("a: 1\nb:\n  c: 2\n  c: 3", "4:3: b.c: duplicate key, first in line 3"),
        ("a:\n\tb: 1", "2:1: a tab is not allowed here, use spaces"),
        ("a: 1\n---\nb: 1", "2:1: a second document begins, only one is read"),
        ("%YAML 1.1\n---\na: 1", "1:1: %YAML 1.1: only YAML 1.2 is read"),
        ("a: !!python/object/apply:os.system [id]", f"1:4: a: tag !!python/object/apply:os.system {NO_TAG}"),
        ("a: !!int 3", f"1:4: a: tag !!int {NO_TAG}"),
        ("a: ! 3", f"1:4: a: tag ! {NO_TAG}"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "3:3: c.'<<': merge keys are not supported, write the keys out"),
        ("a: [*x]", "1:5: a[0]: alias *x has no anchor before it"),
        ("a: &x [*x]", "1:8: a[0]: alias *x is inside its own anchor"),
        ("a: {1: 2}", "1:5: a: a key must be text, got 1"),
        ("null: 2", "1:1: a key must be text, got null"),
        ("[a]: 2", "1:1: a key must be text, got a list"),
        ("a: {lr:0.1, b: c}", "1:5: a.lr: a space is missing after the colon, write lr: 0.1"),
        (
            "a: b: c",
            "1:5: not valid YAML: a second ': ' in one line, a ':' without a space, or a wrong indentation",
        ),
        ("a: [", f"1:5: not valid YAML {CUT_SHORT}"),
        ('a: "\\ud800"', "1:4: a: contains half of a surrogate pair, which is no character"),
        ('a: "\\UFFFFFFFF"', "1:1: not valid YAML: an escape that is no Unicode character"),
        ("a: 1\nb: \x1b[31m", "2:4: character U+001B is not allowed in YAML"),
        (b"a: 1\nb: \xff", "2:4: byte 0xff is not UTF-8, save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "1:1: is UTF-16, save it as UTF-8"),
        ("a".encode("utf-16-le"), f"1:2: character U+0000 {NULL}"),
        (b"a" * (MAX_BYTES + 1), "1:1: is larger than 256 KiB, more than any experiment needs"),
        ("[" * 10_000, f"1:{MAX_DEPTH + 1}: nested deeper than 50 levels"),
        ("{a: " * 10_000, f"1:{4 * (MAX_DEPTH - 1) + 2}: nested deeper than 50 levels"),
        ("- " * 10_000, f"1:{2 * MAX_DEPTH + 1}: nested deeper than 50 levels"),
        (BOMB, f"5:12: e[1]: {TOO_MANY}"),
        (f"[{'a,' * 20_000}]", f"1:{2 * MAX_VALUES}: [19999]: {TOO_MANY}"),
    ],
)
def test_traps_are_refused_by_line_and_column(text, expected):
    assert problems_of(text) == [f"x.yaml:{expected}"]


def test_depth_is_counted_through_aliases():
    layers = "".join(f"- &a{n} {'[' * 20}*a{n - 1}{']' * 20}\n" for n in range(1, 4))
    assert problems_of(f"- &a0 1\n{layers}") == ["x.yaml:4:27: nested deeper than 50 levels"]


def test_all_traps_of_a_file_are_told_at_once():
    assert problems_of("a: 010\na: 1\nb: !x 1\n2: 3\n") == [
        "x.yaml:1:4: a: 010 can be octal or decimal, drop the leading zero or quote it",
        "x.yaml:2:1: a: duplicate key, first in line 1",
        "x.yaml:3:4: b: tag !x is not allowed, write a plain value",
        "x.yaml:4:1: a key must be text, got 2",
    ]


def test_messages_carry_no_control_characters():
    (problem,) = problems_of('"a\\e[31m\\nb": 010')
    assert problem.startswith(r"x.yaml:1:15: 'a\x1b[31m\nb': 010 can be octal")


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(
        ["1e-3", "no", "010", "0x1F", "12:30", "~", "", "<<", "=", "- a", "a: b", "#", "\x85", "\ufeff"]
    )
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])).filter("<<".__ne__), inner, max_size=3
        )
    ),
    max_leaves=10,
)


@given(DOCUMENTS)
@example({"a": "1e-3", "b": 1e-3, "c": "010", "d": "\ufeff"})
def test_what_is_written_is_read_back(document):
    assert value(write({"x": document})) == {"x": document}


@given(st.binary(max_size=200) | st.text("{}[]:,-&*!|>'\"%@`#?~ \n\tab01.<\\", max_size=60).map(str.encode))
def test_no_bytes_whatever_raise_an_exception(raw):
    node, problems = read_bytes(raw, "x.yaml")
    assert node is not None or problems
