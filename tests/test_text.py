"""Text for people: what a name stands for, and how strings, counts, sizes and durations are written."""

from pathlib import Path

import pytest

from normbench.text import (
    closest,
    did_you_mean,
    duration,
    numeric_key,
    plural,
    printable,
    quoted,
    size,
)


def test_nothing_is_suggested_where_no_name_is_close():
    assert did_you_mean("gruop", ["group", "layer"]) == " (did you mean 'group'?)"
    assert did_you_mean("zzz", ["group", "layer"]) == ""


def test_a_letter_typed_twice_is_no_abbreviation():
    assert closest("lrr", ["lr", "lr_reference_batch"]) == "lr"
    assert closest("resnet88", ["resnet8"]) is None


def test_a_name_of_any_length_is_answered():
    """difflib takes time with the square of the length: a name of 10⁶ letters would take hours."""
    assert closest("a" * 1_000_000, ["a" * 999_999]) is None


def test_a_name_in_a_message_stays_on_one_short_line():
    assert quoted("group") == "'group'"
    assert quoted("a\x1b[31m\nb") == r"'a\x1b[31m\nb'"
    assert len(quoted("a" * 1000)) < 50


def test_printable_text_is_one_line_of_limited_length():
    assert printable("a\x1b[31m\nb") == r"a\x1b[31m\nb"
    assert len(printable("a" * 1000)) == 81
    assert printable(Path("a" * 1000)) == "a" * 1000, "a path is shown whole"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3900, "1 h 05 min"),
    ],
)
def test_durations_are_in_the_units_of_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_counts_and_sizes():
    assert [plural(1, "trial"), plural(0, "trial")] == ["1 trial", "0 trials"]
    assert [size(56_000), size(3_400_000), size(1_200_000_000)] == ["56 kB", "3.4 MB", "1.2 GB"]


def test_numbers_in_text_are_sorted_by_value():
    assert sorted(["lr 16", "lr 8", "lr 1e-3"], key=numeric_key) == ["lr 1e-3", "lr 8", "lr 16"]
