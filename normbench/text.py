"""Text for people: suggestions for misspelled names, printable strings, counts, sizes and durations."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

MAX_NAME = 100  # letters; a longer name is never a typing error
MIN_PREFIX = 3  # letters that an abbreviation needs before it stands for the only name that it begins
MAX_ACRONYM = 4  # letters; an alias this short must be written exactly: LCN is not LN
TOO_FAR = MAX_NAME + 1  # edits


def normal_form(name: str) -> str:
    """Return ``name`` without what differs between libraries: letter case, ``_``, ``-``, a final ``2d``."""
    letters = re.sub(r"[\W_]+", "", name.lower())
    return re.sub(r"[1-3]d$", "", re.sub(r"normali[sz]ation", "norm", letters))


def closest(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str | None:
    """Return the known name that ``name`` stands for, or None where that is doubtful.

    Another spelling or an alias is tried first, then a name with a letter typed twice, an abbreviation of
    exactly one name, and last the name that is nearest by edit distance. The first letter and all numbers
    must agree: ResNet-18 is not ResNet-8.

    Args:
        name: text of any length.
        known: the names that exist.
        aliases: known names by other names for them, these in ``normal_form``.
    """
    if len(name) > MAX_NAME:
        return None
    names = {normal_form(known_name): known_name for known_name in reversed([*known])}
    targets = {**(aliases or {}), **names}
    written = normal_form(name)
    last = normal_form(name.rpartition(".")[2])  # of torch.nn.BatchNorm2d
    for form in (written, last, written.removesuffix("norm"), last.removesuffix("norm")):
        if form and form in targets:
            return targets[form]
    if (form := re.sub(r"([a-z])\1", r"\1", written)) in names:
        return names[form]
    completions = {target for form, target in targets.items() if _abbreviates(written, form)}
    if len(completions) == 1:
        return completions.pop()
    distances = {
        form: _edit_distance(written, form, _max_edits(form))
        for form in targets
        if written[:1] == form[:1] and (form in names or len(form) > MAX_ACRONYM)
    }
    nearest = {
        targets[form] for form, edits in distances.items() if edits == min(distances.values()) < TOO_FAR
    }
    return nearest.pop() if len(nearest) == 1 else None


def did_you_mean(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """Return ``" (did you mean 'group'?)"`` for the ``closest`` known name, or an empty string."""
    close = closest(name, known, aliases)
    return f" (did you mean {close!r}?)" if close else ""


def _abbreviates(prefix: str, name: str) -> bool:
    """Return whether ``prefix`` is long enough to abbreviate ``name``, and does not end within a number."""
    rest = name.removeprefix(prefix)
    splits_number = prefix[-1:].isdigit() and rest[:1].isdigit()
    return len(prefix.removesuffix("norm")) >= MIN_PREFIX and rest != name and not splits_number


def _max_edits(name: str) -> int:
    """Return the edit distance that a name allows: 1 for ``group``, 2 for ``switch``, and so on.

    A final ``norm`` does not count, since many names share it.
    """
    letters = re.sub(r"[0-9]", "", name.removesuffix("norm") or name)
    return (len(letters) + 2) // 4 if len(letters) > 2 else 0


def _edit_distance(written: str, known: str, limit: int) -> int:
    """Count the insertions, deletions, replacements and swaps of letters; return TOO_FAR above ``limit``."""
    numbers, known_numbers = (re.findall(r"[0-9]+", name) for name in (written, known))
    if abs(len(written) - len(known)) > limit or numbers != known_numbers:
        return TOO_FAR
    before: list[int] = []
    row = list(range(len(known) + 1))
    for i, letter in enumerate(written, 1):
        last, before, row = before, row, [i]
        for j, known_letter in enumerate(known, 1):
            costs = [before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != known_letter)]
            if i > 1 and j > 1 and letter == known[j - 2] and known_letter == written[i - 2]:
                costs.append(last[j - 2] + 1)
            row.append(min(costs))
        if min(row) > limit:
            return TOO_FAR
    return row[-1] if row[-1] <= limit else TOO_FAR


def quoted(name: str) -> str:
    """Return ``name`` in quotes, on one line, without control characters and cut to 40 characters."""
    return repr(name if len(name) <= 40 else name[:40] + "…")


def printable(text: str | Path, limit: int | None = None) -> str:
    """Return ``text`` on one line, without control characters, and cut to about ``limit`` characters.

    The limit is 80 by default, and 4096 for a path.
    """
    limit = limit or (4096 if isinstance(text, Path) else 80)
    text = str(text)
    cut = text if len(text) <= limit else text[:limit] + "…"
    return cut if cut.isprintable() else repr(cut)[1:-1]


def with_article(noun: str) -> str:
    """Return ``a layer`` or ``an Identity``."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def plural(count: int, noun: str) -> str:
    """Return ``1 trial`` or ``3 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """Return ``1 h 05 min``, ``3 min 20 s``, ``12 s`` or ``0.4 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def size(count: int) -> str:
    """Return a number of bytes as ``1.2 GB``, ``3.4 MB`` or ``56 kB``."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def numeric_key(text: str) -> list[tuple[float, str]]:
    """Return a sort key under which ``16`` comes after ``8``, and ``1e-2`` after ``1e-3``."""
    parts = re.findall(r"(\d+(?:\.\d+)?(?:e-?\d+)?)|(\D+)", text)
    return [(float(number) if number else -1.0, other) for number, other in parts]
