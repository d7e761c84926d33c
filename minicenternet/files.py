"""Files are written whole, then renamed: a reader never sees half a file, whatever kills the writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


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
