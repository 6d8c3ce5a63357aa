"""Files on any file system: atomic writes, locks, free space, and the directories of a user."""

import contextlib
import errno
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
UNSUPPORTED_OF_DIRECTORIES = UNSUPPORTED | {errno.EACCES, errno.EBADF, errno.EISDIR, errno.EPERM}
NO_LOCKS = UNSUPPORTED | {errno.ENOLCK}


class NoHomeError(OSError):
    """A missing home directory: neither ``HOME`` nor the user database names one."""


def sync(descriptor: int) -> None:
    """Write a file to the disk before returning, as far as its file system supports that.

    Raises:
        OSError: it could not be written, as to a full or broken disk.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_directory(directory: Path) -> None:
    """Write the names in a directory to the disk, as ``sync`` does for a file.

    CIFS before Linux 4.17, shared folders of virtual machines and many FUSE file systems do not support this:
    there a power cut may undo a rename, and nothing else is lost.

    Raises:
        OSError: as in ``sync``.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED_OF_DIRECTORIES:
            raise


def free_bytes(directory: Path) -> int | None:
    """Return how many bytes can still be written below ``directory``, to which something was just written.

    Returns:
        None if the file system does not tell, or tells what cannot be true: none, or more than its size.
    """
    try:
        usage = shutil.disk_usage(directory)
    except (OSError, ValueError):
        return None
    return usage.free if 0 < usage.free <= usage.total else None


@contextlib.contextmanager
def locked(directory: Path, option: str, busy: Callable[[str], object]) -> Iterator[None]:
    """Create and lock ``directory``; the system releases the lock when this process dies.

    Args:
        directory: gets a file ``LOCK``.
        option: the option that names another directory, for a message.
        busy: called if another process holds the lock, before this one waits, with the end of a message: how
            to remove a lock that no process releases, or "".

    Raises:
        OSError: locking failed; names the lock. A directory that was created for it is removed again.
    """
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    lock = FileLock(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flock not supported")  # then the file's existence is the lock
            try:
                lock.acquire(timeout=0)
            except Timeout:
                busy(_how_to_free(path))
                lock.acquire()
    except OSError as error:
        if is_new:
            remove_if_unused(directory)
        if error.errno in NO_LOCKS:
            message = f"this file system has no locks; use a directory on another one ({option})"
            raise OSError(error.errno, f"{error.strerror}: {message}", str(path)) from None
        error.filename = error.filename or str(path)
        raise
    try:
        yield
    finally:
        lock.release()


def remove_if_unused(directory: Path) -> None:
    """Remove a directory that is empty except for its lock."""
    with contextlib.suppress(OSError):  # another process has just started to use it
        if {path.name for path in directory.iterdir()} <= {LOCK}:
            (directory / LOCK).unlink(missing_ok=True)
            directory.rmdir()


def _how_to_free(path: Path) -> str:
    """Return how to release a lock that is the existence of its file, which only then has content."""
    with contextlib.suppress(OSError):
        if path.stat().st_size:
            message = "this file system has no locks that end with their process"
            return f"; {message}: if that process has ended, remove {path}"
    return ""


def user_cache() -> Path:
    """Return ``XDG_CACHE_HOME`` if that is absolute, as its specification demands, else ``~/.cache``.

    Raises:
        NoHomeError: there is no home directory either.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return cache if cache.is_absolute() else expanded(Path("~/.cache"))


def expanded(path: Path) -> Path:
    """Return ``path`` with the home directory in place of ``~``.

    Raises:
        NoHomeError: there is none.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise NoHomeError(errno.ENOENT, str(error).rstrip("."), str(path)) from None


class Unwritable(OSError):
    """A file that could not be written, for a reason outside of the trial; ``filename`` names it."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` completely or not at all, whatever happens meanwhile.

    Raises:
        Unwritable: it could not be written; ``path`` has its old or the new content, and never a part of it.
    """
    temporary = path.with_name(f".{path.name[:40]}-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:  # with the user's default permissions, unlike tempfile's
            file.write(content)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # a failed write does not name its file
            number = error.errno or errno.EIO
            raise Unwritable(number, error.strerror or str(error), str(path)) from error
        raise
