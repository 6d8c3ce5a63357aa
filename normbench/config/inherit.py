"""A configuration file and the files that it extends, as one document."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from normbench.config.source import Node, Problem
from normbench.config.yaml import MAX_BYTES, read_bytes
from normbench.text import printable

MAX_FILES = 32  # read for one experiment; a few are sensible
MERGED = ("trial", "sweep", "execute")  # sections of which a file may write a part


class Unreadable(ValueError):
    """A file that cannot be read; the message says why."""


@dataclass
class Files:
    """Reads documents whose key ``extends`` names others: a file, or a list, each over those before.

    Paths are taken from the folder of the file that names them. Sections ``trial`` and ``execute``, and a
    ``sweep`` of one grid, are merged key by key; what has a ``name`` of its own, every other section, and a
    list of grids are replaced as a whole.

    Attributes:
        problems: what is wrong in all files read so far.
        read: how many those are.
    """

    problems: list[Problem] = field(default_factory=list)
    read: int = 0

    def document(self, path: Path, above: tuple[Path, ...] = ()) -> Node | None:
        """The file at ``path`` over all that it extends; None if it is no YAML.

        Args:
            path: a YAML file.
            above: the files that led here.

        Raises:
            Unreadable: the file itself; a base that cannot be read is a problem.
        """
        self.read += 1
        root, found = read_bytes(_bytes(path), printable(path))
        self.problems += found
        if root is None or not isinstance(root.value, dict) or "extends" not in root.value:
            return root
        own = {key: node for key, node in root.value.items() if key != "extends"}
        whole: dict[str, Node] = {}
        for node in self._names(root.value["extends"]):
            base = self._base(node, path, (*above, path))
            if base is not None and isinstance(base.value, dict):
                whole = over(whole, base.value)
        return Node(over(whole, own), root.spot, root.written, root.key)

    def _names(self, node: Node) -> list[Node]:
        names = node.value if isinstance(node.value, list) else [node]
        if names and all(isinstance(name.value, str) for name in names):
            return list(names)
        words = f"expected the name of a file, or a list of such, got {node}"
        self.problems.append(Problem(node.spot, words))
        return []

    def _base(self, node: Node, path: Path, above: tuple[Path, ...]) -> Node | None:
        base = path.parent / node.value
        chain = [*above, base]
        if os.path.normpath(base) in map(os.path.normpath, above):
            words = f"extends itself: {' → '.join(printable(file) for file in chain)}"
        elif self.read >= MAX_FILES:
            words = f"more than {MAX_FILES} files for one experiment"
        else:
            try:
                return self.document(base, above)
            except Unreadable as error:
                words = f"{printable(base)} {error}"
        self.problems.append(Problem(node.spot, words))
        return None


def over(base: dict[str, Node], own: dict[str, Node]) -> dict[str, Node]:
    """The entries of a document put over those of its base."""
    whole = base | own
    for key in MERGED:
        if key in base and key in own:
            whole[key] = _merged(base[key], own[key])
    return whole


def _merged(base: Node, own: Node) -> Node:
    if not (isinstance(base.value, dict) and isinstance(own.value, dict)) or "name" in own.value:
        return own
    both = {key: _merged(base.value[key], own.value[key]) for key in base.value.keys() & own.value.keys()}
    return own.with_entries(base.value | own.value | both)


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            target = printable(path.readlink())
            raise Unreadable(f"cannot be read: it is a link to {target}, which is not there") from None
        raise Unreadable(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
