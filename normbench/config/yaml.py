"""Strict YAML: the 1.2 core schema without its traps, and a position for every value.

PyYAML scans the text, and this module resolves plain scalars. PyYAML itself follows YAML 1.1: ``1e-3`` is
text, ``no`` is false, ``10:30`` is 630, the last of two equal keys wins, and aliases expand without bound.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import yaml

from normbench.config.source import Issue, Node, Position, join_path, with_space
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
    """An issue after which nothing more can be read."""

    def __init__(self, position: Position, message: str) -> None:
        super().__init__(message)
        self.issue = Issue(position, message)


def read_bytes(raw: bytes, source: str) -> tuple[Node | None, list[Issue]]:
    """Parse the content of a UTF-8 file, with or without a byte order mark; see ``read``."""
    start = Position(source, 1, 1, "")
    if len(raw) > MAX_BYTES:
        return None, [Issue(start, f"is larger than {MAX_BYTES // 1024} KiB, more than any experiment needs")]
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None, [Issue(start, "is UTF-16, save it as UTF-8")]
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        return read(raw.decode(), start)
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        position = _spot_after(before, start)
        return None, [Issue(position, f"byte 0x{raw[error.start]:02x} is not UTF-8, save the file as UTF-8")]


def read(text: str, start: Position) -> tuple[Node | None, list[Issue]]:
    """Parse the single document in ``text``.

    Args:
        text: YAML.
        start: its source and path; where its line is 0, its values have no lines either.

    Returns:
        The document, or None if its structure cannot be read, and all issues. A value with an issue
        stays in the document as text; a key with an issue does not.
    """
    issues: list[Issue] = []
    try:
        return _Reader(text, start, issues).document(), issues
    except _UnreadableError as error:
        return None, [*issues, error.issue]


def _spot_after(before: str, start: Position) -> Position:
    """Return the position at which a text continues after ``before``."""
    if not start.line:
        return start
    return replace(start, line=before.count("\n") + 1, column=len(before) - before.rfind("\n"))


class _Reader:
    """A builder of nodes from PyYAML's events, at most MAX_DEPTH deep so that no input exhausts the stack."""

    def __init__(self, text: str, start: Position, issues: list[Issue]) -> None:
        self.text, self.start, self.issues = text, start, issues
        self.events = self._scan()
        self.anchors: dict[str, Node | None] = {}  # None while the anchored value is still open
        self.values = 0

    def _spot(self, mark: Any, path: str) -> Position:
        if not self.start.line:
            return replace(self.start, path=path)
        return Position(self.start.source, mark.line + 1, mark.column + 1, path)

    def _scan(self) -> Iterator[Any]:
        """Yield PyYAML's events.

        Raises:
            _UnreadableError: the text is not YAML.
        """
        try:
            yield from yaml.parse(self.text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            position = _spot_after(self.text[: error.position], self.start)
            advice = ", is the file UTF-16? Save it as UTF-8" if error.character == 0 else ""
            raise _UnreadableError(
                position, f"character U+{int(error.character):04X} is not allowed in YAML{advice}"
            ) from None
        except yaml.MarkedYAMLError as error:
            position = self._spot(error.problem_mark or error.context_mark, self.start.path)
            raise _UnreadableError(position, _reworded(error)) from None
        except (ValueError, OverflowError):  # PyYAML's scanner on "\UFFFFFFFF"
            raise _UnreadableError(
                self.start, "not valid YAML: an escape that is no Unicode character"
            ) from None

    def document(self) -> Node:
        """Read the only document.

        Raises:
            _UnreadableError: there is none, there are several, or it cannot be read.
        """
        next(self.events)
        event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            raise _UnreadableError(self.start, "is empty")
        if event.version not in (None, (1, 2)):
            version = ".".join(map(str, event.version))
            self._report(
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

    def _report(self, position: Position, message: str) -> None:
        self.issues.append(Issue(position, message))

    def _count(self, position: Position, depth: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise _UnreadableError(
                position, f"more than {MAX_VALUES} values (an alias counts as often as it is used)"
            )
        if depth > MAX_DEPTH:
            raise _UnreadableError(replace(position, path=""), f"nested deeper than {MAX_DEPTH} levels")

    def _node(self, event: Any, path: str, depth: int, key: Position | None) -> Node:
        position = self._spot(event.start_mark, path)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), position, depth, key)
        self._count(position, depth)
        if event.anchor:
            self.anchors[event.anchor] = None
        if event.tag is not None:
            tag = printable(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self._report(position, f"tag {tag} is not allowed, write a plain value")
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
                value = self._scalar(written, position) if event.style is None else written
                if _SURROGATE.search(written):
                    self._report(position, "contains half of a surrogate pair, which is no character")
        node = Node(value, position, written, key)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _mapping(self, path: str, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            name = self._node(event, path, depth + 1, None)
            text = isinstance(name.value, str)
            here = join_path(path, name.value) if text else path
            key = replace(name.position, path=here)
            node = self._node(next(self.events), here, depth + 1, key)
            if text and node.value is None and not node.written and (spaced := with_space(name.value)):
                word, _, rest = name.value.partition(":")  # read as intended, so that no other issue follows
                name, key = replace(name, value=word), replace(key, path=join_path(path, word))
                self._report(key, f"a space is missing after the colon, write {printable(spaced)}")
                node = Node(self._scalar(rest, key), key, rest, key)
            if not text:
                self._report(key, f"a key must be text, got {name}")
            elif name.value == "<<":
                self._report(key, "merge keys are not supported, write the keys out")
            elif first := entries.get(name.value):
                line = f", first in line {first.key.line}" if first.key and first.key.line else ""
                self._report(key, f"duplicate key{line}")
            else:
                entries[name.value] = node
        return entries

    def _alias(self, anchor: str, position: Position, depth: int, key: Position | None) -> Node:
        if (node := self.anchors.get(anchor, ...)) is ...:
            raise _UnreadableError(position, f"alias *{printable(anchor)} has no anchor before it")
        if node is None:
            raise _UnreadableError(position, f"alias *{printable(anchor)} is inside its own anchor")
        return replace(self._copied(node, position.path, depth, position), key=key)

    def _copied(self, node: Node, path: str, depth: int, alias: Position) -> Node:
        """Copy an anchored value to the path of its alias, with the positions of the anchored value."""
        self._count(alias, depth)
        value = node.value
        if isinstance(value, list):
            value = [self._copied(item, f"{path}[{i}]", depth + 1, alias) for i, item in enumerate(value)]
        elif isinstance(value, dict):
            value = {k: self._copied(item, join_path(path, k), depth + 1, alias) for k, item in value.items()}
        key = node.key and replace(node.key, path=path)
        return Node(value, replace(node.position, path=path), node.written, key)

    def _scalar(self, text: str, position: Position) -> Any:
        """Resolve a plain scalar by the core schema, https://yaml.org/spec/1.2.2/#103-core-schema."""
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        if _LEADING_ZERO.fullmatch(text):
            message = f"{printable(text)} can be octal or decimal, drop the leading zero or quote it"
            self._report(position, message)
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
            self._report(position, f"{printable(text, 40)} is too large a number")
            return text
        return number


def _reworded(error: yaml.MarkedYAMLError) -> str:
    """Return PyYAML's message on one line, with its most frequent causes in plain words."""
    problem = printable(error.problem or "", 200)
    if "'\\t'" in problem or "\\t" in problem:
        return "a tab is not allowed here, use spaces"
    if problem == "mapping values are not allowed here":
        return "not valid YAML: a second ': ' in one line, a ':' without a space, or a wrong indentation"
    context = f" {printable(error.context, 200)}" if error.context else ""
    return f"not valid YAML{context}: {problem}"


class _Writer(yaml.SafeDumper):
    """A YAML writer that quotes any text that YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True

    def text(self, text: str) -> yaml.ScalarNode:
        """Quote text with a line break other than ``\\n``, which would be read back as a space."""
        return self.represent_scalar(_TEXT, text, style='"' if _BREAK.search(text) else None)


_Writer.add_representer(str, _Writer.text)
for _kind, _pattern in {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT}.items():
    _Writer.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern.pattern})\Z"), None
    )


def has_comment(text: str) -> bool:
    """Return whether ``#`` begins a comment in YAML: it does at the beginning and after white space."""
    marks = [match.end() - 1 for match in re.finditer(r"(?:^|(?<=\s))#", text)]
    try:
        scalars = [
            token for token in yaml.scan(text, Loader=yaml.SafeLoader) if isinstance(token, yaml.ScalarToken)
        ]
    except (yaml.YAMLError, ValueError, OverflowError):
        return False  # `read` reports that
    quoted = [range(token.start_mark.index, token.end_mark.index) for token in scalars]
    return any(all(mark not in span for span in quoted) for mark in marks)


def write(document: Any) -> str:
    """Return YAML that ``read`` parses to an equal document, its keys in the given order."""
    return yaml.dump(
        document, Dumper=_Writer, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
    )
