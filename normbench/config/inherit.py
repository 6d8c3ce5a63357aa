"""A configuration file merged over the files that it extends."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from normbench.config.source import Issue, Node
from normbench.config.yaml import MAX_BYTES, read_bytes
from normbench.text import printable

MAX_FILES = 32  # of one experiment
MERGED = ("trial", "sweep", "tune", "train", "execute")  # sections that a file may write in part


class Unreadable(ValueError):
    """A file that cannot be read; the message says why."""


@dataclass
class Files:
    """A reader of documents whose key ``extends`` names one file or a list, each merged over those before.

    Paths are relative to the folder of the file that names them. Sections ``trial``, ``tune``, ``train`` and
    ``execute``, and a ``sweep`` of one grid, are merged key by key; a mapping with a ``name``, every other
    section and a list of grids are replaced as a whole.

    Attributes:
        issues: what is wrong in all files read so far.
        count: the number of files read so far.
    """

    issues: list[Issue] = field(default_factory=list)
    count: int = 0

    def document(self, path: Path, parents: tuple[Path, ...] = ()) -> Node | None:
        """Read the file at ``path`` merged over all that it extends; return None if it is not YAML.

        Args:
            path: a YAML file.
            parents: the files that extend it, outermost first.

        Raises:
            Unreadable: the file itself; a base that cannot be read is an issue.
        """
        self.count += 1
        root, issues = read_bytes(_read(path), printable(path))
        self.issues += issues
        if root is None or not isinstance(root.value, dict) or "extends" not in root.value:
            return root
        merged: dict[str, Node] = {}
        for node in self._names(root.value["extends"]):
            base = self._base(node, path, (*parents, path))
            if base is not None and isinstance(base.value, dict):
                merged = merge_documents(merged, base.value)
        entries = {key: node for key, node in root.value.items() if key != "extends"}
        return Node(merge_documents(merged, entries), root.position, root.written, root.key)

    def _names(self, node: Node) -> list[Node]:
        names = node.value if isinstance(node.value, list) else [node]
        if names and all(isinstance(name.value, str) for name in names):
            return list(names)
        message = f"expected the name of a file, or a list of such, got {node}"
        self.issues.append(Issue(node.position, message))
        return []

    def _base(self, node: Node, path: Path, parents: tuple[Path, ...]) -> Node | None:
        base = path.parent / node.value
        if os.path.normpath(base) in map(os.path.normpath, parents):
            message = f"extends itself: {' → '.join(map(printable, (*parents, base)))}"
        elif self.count >= MAX_FILES:
            message = f"more than {MAX_FILES} files for one experiment"
        else:
            try:
                return self.document(base, parents)
            except Unreadable as error:
                message = f"{printable(base)} {error}"
        self.issues.append(Issue(node.position, message))
        return None


def merge_documents(base: dict[str, Node], entries: dict[str, Node]) -> dict[str, Node]:
    """Return ``entries`` of a document merged over those of its base."""
    merged = {key: _merge(base[key], entries[key]) for key in MERGED if key in base and key in entries}
    return base | entries | merged


def _merge(base: Node, node: Node) -> Node:
    if not (isinstance(base.value, dict) and isinstance(node.value, dict)) or "name" in node.value:
        return node
    shared = {key: _merge(base.value[key], node.value[key]) for key in base.value.keys() & node.value.keys()}
    return node.with_entries(base.value | node.value | shared)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            message = f"cannot be read: it is a link to {printable(path.readlink())}, which does not exist"
            raise Unreadable(message) from None
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
