"""Files are written whole, then renamed: a reader never sees half a file, whatever kills the writer.

And a folder has one writer at a time, where all of them `lock` it.
"""

from __future__ import annotations

import os
import socket
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"  # name of the file


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it is flushed to disk and renamed to `path`.

    When the block fails, `path` is left as it was and the temporary file is removed.
    Raises InputError when the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}. What was there before is untouched; "
            "free some space or name another folder."
        ) from error
    finally:
        with suppress(OSError):  # renamed away, or never made
            temporary.unlink()


def legible(name: str) -> str:
    r"""Return a file name as it can be shown: bytes that are no UTF-8, which Python keeps as surrogates, as \udcfc."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


class Lock:
    """A process's right to write to a folder, until nobody in it holds this or the process ends; see `lock`."""

    def __init__(self, file: int):
        weakref.finalize(self, os.close, file)


_locks: weakref.WeakValueDictionary[tuple[int, int], Lock] = weakref.WeakValueDictionary()  # by device and inode
_one_at_a_time = threading.Lock()


def lock(folder: Path) -> Lock | None:
    """Return what keeps all other processes that ask for it from writing to a folder, for as long as it is held.

    It is flock(2) of the file .lock, in which the process is named: the kernel ends it with the process, whatever ends
    that (and all that it forked: they hold it, too; none of ours forks). All in one process share it, such as a run
    that was interrupted and its successor.
    Where Python has no fcntl (on Windows) it is None, and nothing is locked; the same, with a warning, on a disk that
    has no locks.  Raises InputError, naming the process, when another one writes to the folder, and when the file
    cannot be opened.
    """
    if fcntl is None:
        return None
    path = folder / LOCK
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make that possible, or name another folder"
        ) from error
    new, status = Lock(file), os.fstat(file)
    key = status.st_dev, status.st_ino
    with _one_at_a_time:
        held = _locks.get(key)
        if held is None and _take(file, folder):
            _locks[key] = held = new
        return held


def _take(file: int, folder: Path) -> bool:
    """Lock the open file and write this process into it; return False on a disk that has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        writer = os.pread(file, 1000, 0).decode(errors="replace").strip() or "another process"
        raise InputError(
            f"{folder} is being written by {writer}; wait until that has ended, or end it, or name another folder"
        ) from None
    except OSError as error:
        warnings.warn(f"{folder} cannot be locked ({error.strerror}): let no second process write there", stacklevel=3)
        return False
    with suppress(OSError):  # a full disk keeps the name out, not the lock off
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return True
