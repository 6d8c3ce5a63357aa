"""What some file systems refuse or get wrong: syncing, telling what is free, locks; and no home directory."""

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
# that a directory cannot be opened for reading, or not synced once it is open
UNSUPPORTED_OF_DIRECTORIES = UNSUPPORTED | {errno.EACCES, errno.EBADF, errno.EISDIR, errno.EPERM}
NO_LOCKS = UNSUPPORTED | {errno.ENOLCK}


class NoHomeError(OSError):
    """This user has no home directory: ``HOME`` is not set, and no entry of the user database names one."""


def sync(descriptor: int) -> None:
    """Have a file on the disk before this returns, as far as its file system can promise that.

    Raises:
        OSError: it is not there, as of a disk that is full or broken.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_directory(directory: Path) -> None:
    """Have the names in a directory on the disk, likewise.

    CIFS before Linux 4.17, the shared folders of virtual machines and many FUSE file systems refuse this of
    every directory: then a rename may be undone by a power cut, and nothing else is lost.

    Raises:
        OSError: as for ``sync``.
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
    """How much may still be written below ``directory``, where something has just been written.

    Returns:
        None where the file system does not say, or says what cannot be: nothing, or more than there is.
    """
    try:
        usage = shutil.disk_usage(directory)
    except (OSError, ValueError):
        return None
    return usage.free if 0 < usage.free <= usage.total else None


@contextlib.contextmanager
def locked(directory: Path, elsewhere: str, busy: Callable[[str], object]) -> Iterator[None]:
    """Hold ``directory``, which is made if need be; the system frees it when this process dies.

    Args:
        directory: it gets a file ``LOCK``.
        elsewhere: the option that names another directory, for a message.
        busy: is called if another process holds the lock, before this one waits. It is told how to remove a
            lock that no process frees, or "".

    Raises:
        OSError: the lock cannot be had; names its file. A directory made for it alone is removed again.
    """
    made = not directory.exists()
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
        if made:
            remove_if_unused(directory)
        if error.errno in NO_LOCKS:
            words = f"this file system has no locks; use a directory on another one ({elsewhere})"
            raise OSError(error.errno, f"{error.strerror}: {words}", str(path)) from None
        error.filename = error.filename or str(path)
        raise
    try:
        yield
    finally:
        lock.release()


def remove_if_unused(directory: Path) -> None:
    """Remove a directory that holds nothing but its lock."""
    with contextlib.suppress(OSError):  # somebody else has just begun here
        if {path.name for path in directory.iterdir()} <= {LOCK}:
            (directory / LOCK).unlink(missing_ok=True)
            directory.rmdir()


def _how_to_free(path: Path) -> str:
    """Words for a lock whose existence is what holds it, which only has content; else none."""
    with contextlib.suppress(OSError):
        if path.stat().st_size:
            words = "this file system has no locks that end with their process"
            return f"; {words}: if that one has ended, remove {path}"
    return ""


def user_cache() -> Path:
    """The user's cache directory: ``XDG_CACHE_HOME`` if that is absolute, as its specification asks, else
    ``~/.cache``.

    Raises:
        NoHomeError: there is no home directory either.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return cache if cache.is_absolute() else expanded(Path("~/.cache"))


def expanded(path: Path) -> Path:
    """``path`` with the home directory in place of ``~``.

    Raises:
        NoHomeError: there is none.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise NoHomeError(errno.ENOENT, str(error).rstrip("."), str(path)) from None


class Unwritable(OSError):
    """A file that could not be written, which is no trial's own fault; ``filename`` says which."""


def write_atomically(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``: whole or not at all, whatever happens meanwhile.

    Raises:
        Unwritable: it could not be written; what is at ``path`` is whole, be it the old or the new.
    """
    temporary = path.with_name(f".{path.name[:40]}-{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:  # unlike those of tempfile, with the permissions the user wants
            file.write(content)
            file.flush()
            sync(file.fileno())
        temporary.replace(path)
        sync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # which does not say where, if a write failed
            number = error.errno or errno.EIO
            raise Unwritable(number, error.strerror or str(error), str(path)) from error
        raise
