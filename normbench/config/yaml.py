"""Strict YAML: the 1.2 core schema without its traps, and every value knows where it was written.

PyYAML scans; what a plain word means is decided here. PyYAML itself follows YAML 1.1: ``1e-3`` is
text, ``no`` is false, ``10:30`` is 630, the last of two equal keys wins, and aliases expand without bound.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import yaml

from normbench.config.source import Node, Problem, Spot, joined, with_blank
from normbench.text import printable

MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000  # an alias counts as often as it is used
MAX_DEPTH = 50
MAX_NUMBER = 2**63 - 1

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")
_BREAK = re.compile("[\r\x85\u2028\u2029]")
_TEXT = "tag:yaml.org,2002:str"
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class _UnreadableError(Exception):
    """Nothing after this problem can be read."""

    def __init__(self, spot: Spot, words: str) -> None:
        super().__init__(words)
        self.problem = Problem(spot, words)


def read_bytes(raw: bytes, source: str) -> tuple[Node | None, list[Problem]]:
    """The document of a UTF-8 file (a byte order mark is allowed) and what is wrong with it; see ``read``."""
    start = Spot(source, 1, 1, "")
    if len(raw) > MAX_BYTES:
        return None, [
            Problem(start, f"is larger than {MAX_BYTES // 1024} KiB, more than any experiment needs")
        ]
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None, [Problem(start, "is UTF-16, save it as UTF-8")]
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return read(raw.decode(), start)
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        spot = _spot_after(before, start)
        return None, [Problem(spot, f"byte 0x{raw[error.start]:02x} is not UTF-8, save the file as UTF-8")]


def read(text: str, start: Spot) -> tuple[Node | None, list[Problem]]:
    """The one document in ``text`` and all that is wrong with it.

    Args:
        text: YAML.
        start: its source and path; where its line is 0, the values in it have no lines either.

    Returns:
        The document, or None where its structure cannot be read, and the problems. A value with a problem
        stays in the document as text; a key with a problem does not.
    """
    problems: list[Problem] = []
    try:
        return _Reader(text, start, problems).document(), problems
    except _UnreadableError as refused:
        return None, [*problems, refused.problem]


def _spot_after(before: str, start: Spot) -> Spot:
    """Where a text goes on after ``before``."""
    if not start.line:
        return start
    return replace(start, line=before.count("\n") + 1, column=len(before) - before.rfind("\n"))


class _Reader:
    """Builds nodes from PyYAML's events, never deeper than MAX_DEPTH, so that no input exhausts the stack."""

    def __init__(self, text: str, start: Spot, problems: list[Problem]) -> None:
        self.text, self.start, self.problems = text, start, problems
        self.events = self._scan()
        self.anchors: dict[str, Node | None] = {}  # None while the anchored value is still open
        self.values = 0

    def _spot(self, mark: Any, path: str) -> Spot:
        if not self.start.line:
            return replace(self.start, path=path)
        return Spot(self.start.source, mark.line + 1, mark.column + 1, path)

    def _scan(self) -> Iterator[Any]:
        """PyYAML's events.

        Raises:
            _UnreadableError: the text is not YAML.
        """
        try:
            yield from yaml.parse(self.text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            spot = _spot_after(self.text[: error.position], self.start)
            advice = ", is the file UTF-16? Save it as UTF-8" if error.character == 0 else ""
            raise _UnreadableError(
                spot, f"character U+{int(error.character):04X} is not allowed in YAML{advice}"
            ) from None
        except yaml.MarkedYAMLError as error:
            spot = self._spot(error.problem_mark or error.context_mark, self.start.path)
            raise _UnreadableError(spot, _reworded(error)) from None
        except (ValueError, OverflowError):  # PyYAML's scanner on "\UFFFFFFFF"
            raise _UnreadableError(
                self.start, "not valid YAML: an escape that is no Unicode character"
            ) from None

    def document(self) -> Node:
        """The only document.

        Raises:
            _UnreadableError: there is none, there are more, or it cannot be read.
        """
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise _UnreadableError(self.start, "is empty")
        if event.version not in (None, (1, 2)):
            version = ".".join(map(str, event.version))
            self._problem(
                self._spot(event.start_mark, self.start.path), f"%YAML {version}: only YAML 1.2 is read"
            )
        root = self._node(next(self.events), self.start.path, 1, None)
        next(self.events)
        event = next(self.events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise _UnreadableError(
                self._spot(event.start_mark, ""), "a second document begins, only one is read"
            )
        return root

    def _problem(self, spot: Spot, words: str) -> None:
        self.problems.append(Problem(spot, words))

    def _count(self, spot: Spot, depth: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise _UnreadableError(
                spot, f"more than {MAX_VALUES} values (an alias counts as often as it is used)"
            )
        if depth > MAX_DEPTH:
            raise _UnreadableError(replace(spot, path=""), f"nested deeper than {MAX_DEPTH} levels")

    def _node(self, event: Any, path: str, depth: int, key: Spot | None) -> Node:
        spot = self._spot(event.start_mark, path)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), spot, depth, key)
        self._count(spot, depth)
        if event.anchor:
            self.anchors[event.anchor] = None
        if event.tag is not None:
            tag = printable(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self._problem(spot, f"tag {tag} is not allowed, write a plain value")
        written = ""
        value: Any
        match event:
            case yaml.MappingStartEvent():
                value = self._mapping(path, depth)
            case yaml.SequenceStartEvent():
                value = []
                while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
                    value.append(self._node(item, f"{path}[{len(value)}]", depth + 1, None))
            case _:
                written = event.value
                value = self._scalar(written, spot) if event.style is None else written
                if _SURROGATE.search(written):
                    self._problem(spot, "contains half of a surrogate pair, which is no character")
        node = Node(value, spot, written, key)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _mapping(self, path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            name = self._node(event, path, depth + 1, None)
            text = isinstance(name.value, str)
            here = joined(path, name.value) if text else path
            key = replace(name.spot, path=here)
            node = self._node(next(self.events), here, depth + 1, key)
            if text and node.value is None and not node.written and (spaced := with_blank(name.value)):
                word, _, rest = name.value.partition(":")  # as it was meant, so that nothing else is wrong
                name, key = replace(name, value=word), replace(key, path=joined(path, word))
                self._problem(key, f"a blank is missing behind the colon, write {printable(spaced)}")
                node = Node(self._scalar(rest, key), key, rest, key)
            if not text:
                self._problem(key, f"a key must be text, got {name}")
            elif name.value == "<<":
                self._problem(key, "merge keys are not supported, write the keys out")
            elif first := entries.get(name.value):
                line = f", first in line {first.key.line}" if first.key and first.key.line else ""
                self._problem(key, f"duplicate key{line}")
            else:
                entries[name.value] = node
        return entries

    def _alias(self, anchor: str, spot: Spot, depth: int, key: Spot | None) -> Node:
        if (node := self.anchors.get(anchor, ...)) is ...:
            raise _UnreadableError(spot, f"alias *{printable(anchor)} has no anchor before it")
        if node is None:
            raise _UnreadableError(spot, f"alias *{printable(anchor)} is inside its own anchor")
        return replace(self._copied(node, spot.path, depth, spot), key=key)

    def _copied(self, node: Node, path: str, depth: int, alias: Spot) -> Node:
        """An anchored value under the path of its alias; its places stay where it is written."""
        self._count(alias, depth)
        value = node.value
        if isinstance(value, list):
            value = [self._copied(item, f"{path}[{i}]", depth + 1, alias) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            value = {k: self._copied(item, joined(path, k), depth + 1, alias) for k, item in value.items()}
        key = node.key and replace(node.key, path=path)
        return Node(value, replace(node.spot, path=path), node.written, key)

    def _scalar(self, text: str, spot: Spot) -> Any:
        """What a plain scalar means in the core schema, https://yaml.org/spec/1.2.2/#103-core-schema."""
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _LEADING_ZERO.fullmatch(text):
            words = f"{printable(text)} may be meant as octal or decimal, drop the leading zero or quote it"
            self._problem(spot, words)
            return text
        if _NOT_FINITE.fullmatch(text):
            return float(text.lower().replace(".", ""))
        number: int | float
        if _INT.fullmatch(text) and len(text) <= 40:
            number = int(text, 0) if text[1:2] in ("x", "o") else int(text)
        elif _FLOAT.fullmatch(text):
            number = float(text)
        else:
            return text
        if math.isinf(number) or (isinstance(number, int) and abs(number) > MAX_NUMBER):
            self._problem(spot, f"{printable(text, 40)} is too large a number")
            return text
        return number


def _reworded(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's complaint on one line, its most frequent cause in plain words."""
    problem = printable(error.problem or "", 200)
    if "'\\t'" in problem or "\\t" in problem:
        return "a tab cannot stand here, use spaces"
    if problem == "mapping values are not allowed here":
        return "not valid YAML: a second ': ' in one line, a ':' without a blank, or a wrong indentation"
    context = f" {printable(error.context, 200)}" if error.context else ""
    return f"not valid YAML{context}: {problem}"


class _Writer(yaml.SafeDumper):
    """Quotes any text that either version of YAML would read as something else."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        """Any line break but ``\\n`` would be read back as a space."""
        return self.represent_scalar(_TEXT, text, style='"' if _BREAK.search(text) else None)


_Writer.add_representer(str, _Writer.text)
for _kind, _pattern in {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}.items():
    _Writer.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern.pattern})\Z"), None
    )


def has_comment(text: str) -> bool:
    """Whether ``#`` begins a comment in a text that is YAML: it does at the beginning and behind a blank."""
    marks = [found.end() - 1 for found in re.finditer(r"(?:^|(?<=\s))#", text)]
    try:
        scalars = [
            token for token in yaml.scan(text, Loader=yaml.SafeLoader) if isinstance(token, yaml.ScalarToken)
        ]
    except (yaml.YAMLError, ValueError, OverflowError):
        return False  # that is a problem of its own
    within = [range(token.start_mark.index, token.end_mark.index) for token in scalars]
    return any(all(mark not in each for each in within) for mark in marks)


def write(document: Any) -> str:
    """YAML that ``read`` reads back to an equal document, its keys in the order given."""
    return yaml.dump(
        document, Dumper=_Writer, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
