import pytest

from normbench.lookup import Entry, Table, UnknownName, closest, nearest, shortened
from normbench.norms import NORMS

FRUIT: Table[Entry] = Table(
    "fruit", Entry("pear", "a pear", "math:pi"), Entry("apple", "an apple", "os.path:join")
)


def test_a_table_keeps_the_order_in_which_it_is_written():
    assert list(FRUIT) == ["pear", "apple"]
    assert len(FRUIT) == 2


def test_a_table_knows_its_names_and_only_them():
    assert "pear" in FRUIT
    assert "plum" not in FRUIT
    assert FRUIT["pear"].summary == "a pear"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"^unknown fruit 'aple' \(did you mean 'apple'\?\)$"):
        FRUIT["aple"]


def test_an_unknown_name_like_none_is_refused_with_all_that_are_known():
    with pytest.raises(UnknownName, match=r"^unknown fruit 'xyz'; known: pear, apple$"):
        FRUIT["xyz"]


def test_a_name_listed_twice_is_refused():
    with pytest.raises(ValueError, match="the table of fruits lists a name twice"):
        Table("fruit", FRUIT["pear"], FRUIT["pear"])


def test_the_code_behind_an_entry_is_imported_when_asked_for():
    from os.path import join

    assert FRUIT["apple"].load() is join


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("batchnorm", "batch"),
        ("groupnorm", "group"),
        ("weight_norms", "weight_norm"),
        ("batch_renrom", "batch_renorm"),
    ],
)
def test_a_slip_comes_before_a_beginning_and_that_before_what_is_only_similar(name, meant):
    assert closest(name, NORMS) == meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bn", "batch"),
        ("LN", "layer"),
        ("in", "instance"),
        ("gn", "group"),
        ("sn", "switchable"),
        ("brn", "batch_renorm"),
        ("frn", "filter_response"),
        ("wn", "weight_norm"),
        ("WS", "weight_standardization"),
        ("nf", "normalizer_free"),
        ("b", None),
    ],
)
def test_methods_are_known_by_what_papers_call_them(name, meant):
    assert closest(name, NORMS) == meant


def test_nearest_says_nothing_where_nothing_is_near():
    assert nearest("gruop", ["group", "layer"]) == " (did you mean 'group'?)"
    assert nearest("zzz", ["group", "layer"]) == ""


def test_a_name_of_any_length_is_answered():
    """difflib takes time with the square of the length: a name of 10⁶ letters would take hours."""
    assert closest("a" * 1_000_000, ["a" * 999_999]) is None


def test_a_name_in_a_message_stays_on_one_short_line():
    assert shortened("group") == "'group'"
    assert shortened("a\x1b[31m\nb") == r"'a\x1b[31m\nb'"
    assert len(shortened("a" * 1000)) < 50
