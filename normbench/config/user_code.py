"""Code of users: which files it consists of, and a context that confines its effects on the process.

A user's function is named ``module:function``. Its source is the file of that module and those of the modules
that it imports, as far as they are beside it or in its package. These are found by parsing and never by
running them, so that a command that trains nothing can report whether they have changed.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TextIO

from normbench.signals import ENDING, Stopped

INSTALLED = frozenset(
    Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")
)
PACKAGE = "normbench"
# what a record states of code, by the setting that names it: hashes of its file and of all its files
HASHES = {
    "norm": ("own_norm_sha256", "own_code_sha256"),
    "model": ("own_model_sha256", "own_model_code_sha256"),
}
LIBRARIES = frozenset({"torch", "torchvision", "timm"})  # installed; their releases say all of their code


class Source(NamedTuple):
    """The source of a module.

    Attributes:
        sha256: hash of its file.
        imports: full names that it may import; relative ones are resolved.
    """

    sha256: str
    imports: tuple[str, ...]


class Sources:
    """The hashes of the files of a user's function by module name, that of the function first."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files

    @property
    def sha256(self) -> str:
        """Return a hash of all files and the names of their modules."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()

    @property
    def first(self) -> str | None:
        """Return the sha256 of the file that defines the function, or None without one."""
        return next(iter(self.files.values()), None)


_imported: dict[Path, Source] = {}  # files as they were when this process imported them


def current(target: str) -> Sources:
    """Return the source of ``module:function`` on disk, without files if there is no such module."""
    return Sources({name: source.sha256 for name, _, source in _walk(target, {})})


def imported(target: str) -> Sources:
    """Return the source of ``module:function`` as this process imported it; see :func:`remember`."""
    return Sources({name: source.sha256 for name, _, source in _walk(target, _imported)})


def remember(target: str) -> None:
    """Remember the files that will be imported now; keep those of modules that are already imported."""
    for name, path, _ in _walk(target, {}):
        if name not in sys.modules or path not in _imported:
            with contextlib.suppress(OSError):
                _imported[path] = _read(name, path)


def add_current_directory() -> None:
    """Append the current directory to the import path, after all that is installed."""
    if (directory := str(Path.cwd())) not in sys.path:
        sys.path.append(directory)


def _walk(target: str, known: dict[Path, Source]) -> Iterator[tuple[str, Path, Source]]:
    """Yield name, file and source of the module and of those beside it that it imports, transitively."""
    module = target.partition(":")[0]
    top = module.partition(".")[0]
    first = _file(module, None)
    if first is None:
        return
    root = first.parents[len(module.split(".")) - (first.name != "__init__.py")]
    installed = root.resolve() in INSTALLED
    is_library = installed and top in LIBRARIES
    waiting, seen = [module, *_parents(module)], set[str]()
    if is_library:
        waiting.append(f"{top}.version")
    while waiting:
        name = waiting.pop(0)
        head = name.partition(".")[0]
        if name in seen or head == PACKAGE or (installed and head != top):
            continue
        seen.add(name)
        path = _file(name, None if head == top else root)
        if path is None:
            continue
        try:
            source = known.get(path) or _read(name, path)
        except OSError:
            continue
        yield name, path, source
        for imported_name in () if is_library else source.imports:
            waiting += [imported_name, *_parents(imported_name)]


def _parents(name: str) -> list[str]:
    """Return ``a`` and ``a.b`` for ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _file(name: str, root: Path | None) -> Path | None:
    """Find the file of a module, below ``root`` or by Python's path; no module is executed."""
    head, *rest = name.split(".")
    finder = importlib.machinery.PathFinder
    importlib.invalidate_caches()
    spec = None
    if root is None:
        with contextlib.suppress(ValueError, ImportError):  # of a module without a specification
            spec = importlib.util.find_spec(head)
    spec = spec or finder.find_spec(head, [str(root or Path.cwd())])
    for end in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name_so_far = ".".join((head, *rest[: end + 1]))
        spec = finder.find_spec(name_so_far, list(spec.submodule_search_locations))
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _read(name: str, path: Path) -> Source:
    content = path.read_bytes()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # not Python, or hostile
        return Source(hashlib.sha256(content).hexdigest(), ())
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            within = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*within, *([node.module] if node.module else [])])
            names |= dict.fromkeys([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return Source(hashlib.sha256(content).hexdigest(), tuple(filter(None, names)))


class EndedProcess(RuntimeError):
    """An attempt of a user's code to end the process; the message says how."""


class _Streams:
    """The standard input, output and arguments of the process while a user's code runs in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = 0
        self._undo = contextlib.ExitStack()

    def redirect(self) -> None:
        """Redirect them, in the first of several threads."""
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._change()

    def restore(self) -> None:
        """Restore them, in the last of several threads."""
        with self._lock:
            self._threads -= 1
            if not self._threads:
                self._undo.close()

    def _change(self) -> None:
        before = sys.argv, sys.stdin, sys.stdout
        null = self._undo.enter_context(open(os.devnull))  # noqa: PTH123, SIM115 - as in streams
        self._undo.callback(_set, *before)
        _flush(sys.stdout)
        _redirect(self._undo, 0, null.fileno())
        _redirect(self._undo, 1, 2)
        self._undo.callback(_flush, sys.stdout)  # the user's code may have kept a reference to it
        _set(sys.argv[:1], null, sys.stderr)


def _set(argv: list[str], stdin: TextIO, stdout: TextIO) -> None:
    sys.argv, sys.stdin, sys.stdout = argv, stdin, stdout


def _flush(stream: TextIO | None) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or None
        stream.flush()  # type: ignore[union-attr]


def _redirect(undo: contextlib.ExitStack, number: int, to: int) -> None:
    """Redirect a file descriptor, which code in other languages writes to as well."""
    with contextlib.suppress(OSError):  # one of them is closed
        before = os.dup(number)
        undo.callback(os.close, before)
        os.dup2(to, number)
        undo.callback(os.dup2, before, number)


_streams = _Streams()


class Contained:
    """A context for a user's code: its output goes to stderr, it has no arguments and no standard input.

    At the end the current directory and the signal handlers are restored.

    Raises:
        EndedProcess: the code raised ``SystemExit`` or the like, which would end the process.
    """

    def __enter__(self) -> Self:
        self._directory = Path.cwd() if Path().exists() else None
        main = threading.current_thread() is threading.main_thread()
        self._handlers = {number: signal.getsignal(number) for number in ENDING} if main else {}
        _streams.redirect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        _streams.restore()
        for number, handler in self._handlers.items():
            if handler is not signal.getsignal(number) and handler is not None:
                signal.signal(number, handler)
        if self._directory is not None:
            with contextlib.suppress(OSError):  # it was deleted
                os.chdir(self._directory)
        if error is None or isinstance(error, Exception | Stopped):
            return
        ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if isinstance(error, KeyboardInterrupt) and ctrl_c:
            return
        name = type(error).__name__
        what = f"{name}: {error}" if str(error) else name
        raise EndedProcess(
            f"{what} (code of your own must not end the process; move the statements of a script below "
            "if __name__ == '__main__')"
        ) from error
