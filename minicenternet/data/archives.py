"""Published files and archives: fetched from one of several addresses, checked, and unpacked into one folder only.

    fetch     a file from the first address that gives the right one: size and SHA-256 are known beforehand
    Stored    reads single files by name out of a folder or an archive
    unpack    writes all files wanted of an archive, each to its place; those that are there are left alone

No file is written under a name just because an archive gives it: who unpacks says which names it wants and where they
go. An archive in which any name is absolute, climbs with "..", or is a link, is refused before anything is written.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from ..download import download, sha256
from ..errors import InputError
from .annotation import leaves_folder

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
OF_ARCHIVES = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error)
DAMAGED = (*OF_ARCHIVES, EOFError, NotImplementedError, RuntimeError)  # what reading a damaged one may raise
CHUNK = 2**20
OTHERWISE = "name a folder or an archive that you have, or a mirror, by --source"


class File(NamedTuple):
    """A published file: its name there, its size in bytes and its SHA-256."""

    name: str
    size: int
    sha256: str

    @property
    def base(self) -> str:
        """The name without folders."""
        return PurePosixPath(self.name).name


def fault(path: Path, file: File) -> str | None:
    """Return how the file at `path` differs from the published one, or None when it is that one."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes, expected {file.size}"
    found = sha256(path)
    return None if found == file.sha256 else f"SHA-256 {found}, expected {file.sha256}"


def fetch(file: File, path: Path, urls: Sequence[str], otherwise: str = OTHERWISE) -> None:
    """Download a published file to `path`, from the first of the urls that gives the right one.

    What a connection that breaks has brought is gone on with, from another url too.  A file at `path` is checked, and
    fetched again where it is wrong.  Raises InputError when no url gives the right file.
    """
    if path.is_file() and fault(path, file) is None:
        return
    reasons = []
    for url in urls:
        try:
            return _fetch_right(file, path, url, otherwise)
        except InputError as error:
            reasons.append(str(error))
    raise InputError("; ".join(reasons))


def _fetch_right(file: File, path: Path, url: str, otherwise: str) -> None:
    for _ in range(2):  # what a bad line spoilt, or another url had begun, may come whole the second time
        download(url, path, file.size, otherwise)
        wrong = fault(path, file)
        if wrong is None:
            return
        path.unlink()
    raise InputError(f"{url} came with {wrong}: it was deleted. Try again later, or {otherwise}")


# ---- what is in a folder or an archive -------------------------------------------------------------------------------


class Stored:
    """A folder on disk, or an archive of one, perhaps inside other folders; used as a context, which closes it."""

    def __init__(self, path: Path):
        self.path = path
        try:
            if path.is_dir():
                self.archive = None
            elif zipfile.is_zipfile(path):
                self.archive = zipfile.ZipFile(path)
                self.members = {_last_two(name): name for name in self.archive.namelist()}
            elif path.is_file() and tarfile.is_tarfile(path):
                self.archive = tarfile.open(path)
                self.members = {_last_two(member.name): member for member in self.archive if member.isfile()}
            else:
                found = "a file that is neither" if path.is_file() else "nothing"
                raise InputError(f"the source {path} is {found}; expected a folder, a .zip or a .tar(.gz) archive")
        except DAMAGED as error:
            raise InputError(f"the archive {path} is damaged ({error}); get it again") from error

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *_) -> None:
        if self.archive is not None:
            self.archive.close()

    def get(self, name: str, path: Path, max_bytes: int) -> None:
        """Write the file to path.  Raises InputError when there is none, or it is larger than max_bytes, or damaged."""
        try:
            with self._open(name) as file:
                size = _copy(file, path, max_bytes)
        except DAMAGED as error:
            raise InputError(f"{name} in the archive {self.path} is damaged ({error}); get it again") from error
        if size > max_bytes:
            raise InputError(f"{name} in {self.path} is larger than {max_bytes} bytes: it is another file")

    def _open(self, name: str) -> BinaryIO:
        if self.archive is None and (self.path / name).is_file():
            return open(self.path / name, "rb")
        if self.archive is not None and name in self.members:
            member = self.members[name]
            return self.archive.open(member) if isinstance(member, str) else self.archive.extractfile(member)
        raise InputError(f"{self.path} has no {name}; expected it there, as in the published layout")


def _copy(file: BinaryIO, path: Path, max_bytes: int) -> int:
    """Write what a file holds to `path`, anew, until it is more than max_bytes; return how many bytes were written.

    Raises InputError when the disk is full.
    """
    try:
        path.unlink(missing_ok=True)  # it may be a link
        with open(path, "xb") as copy:
            while copy.tell() <= max_bytes and (chunk := file.read(CHUNK)):
                copy.write(chunk)
            return copy.tell()
    except DAMAGED:  # some are OSErrors, too
        raise
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free some space, and the same command goes on from there"
        ) from error


def _last_two(name: str) -> str:
    return "/".join(PurePosixPath(name).parts[-2:])


# ---- unpacking -------------------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    name: str
    kind: str  # file, folder or link; devices and pipes count as links
    size: int
    open: Callable[[], BinaryIO]


def unpack(path: Path, folder: Path, place: Callable[[str], str | None]) -> int:
    """Write the files of an archive for which place(name) is a path, relative to `folder`; return how many there are.

    A file that is there in the right size is left as it is; the others are written whole, then renamed.  Raises
    InputError when a name in the archive is absolute, climbs out or is a link (before anything is written), when a
    folder on the way is a link, and when the archive is none or damaged.
    """
    count, made = 0, {}
    with _members(path) as members:
        for member in members:
            if leaves_folder(member.name) or member.kind == "link":
                fault = "a link or a device" if member.kind == "link" else "a name that leaves its folder"
                raise InputError(
                    f"the archive {path} holds {member.name!r}, {fault}: nothing of it was unpacked. It is not the "
                    "published one; get it again"
                )
        for member in tqdm(members, f"unpacking {path.name}", unit=" files", leave=False, disable=None):
            wanted = place(member.name) if member.kind == "file" else None
            if wanted is None:
                continue
            parent, _, base = wanted.rpartition("/")
            if parent not in made:
                made[parent] = folder_inside(folder, parent)
            _write(member, made[parent] / base)
            count += 1
    return count


def folder_inside(folder: Path, name: str) -> Path:
    """Return folder/name, made with its parents.  Raises InputError when one of them, below `folder`, is a link."""
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        if path.is_symlink():
            raise InputError(f"{path} is a link to elsewhere; nothing is written there: name another folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write(member: _Member, target: Path) -> None:
    if not target.is_symlink() and target.is_file() and target.stat().st_size == member.size:
        return
    arrived = target.with_name(f"{target.name}.new")
    with member.open() as file:
        size = _copy(file, arrived, member.size)
    if size != member.size:
        raise EOFError(f"{member.name} has {size} bytes, expected {member.size}")
    os.replace(arrived, target)


@contextmanager
def _members(path: Path) -> Iterator[list[_Member]]:
    """Yield what is in an archive; an error of the archive, inside too, is an InputError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield [_zip_member(archive, info) for info in archive.infolist()]
        elif path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                yield [_tar_member(archive, info) for info in archive]
        else:
            raise InputError(f"{path} is no .zip and no .tar(.gz) archive; get it again")
    except DAMAGED as error:
        raise InputError(f"the archive {path} is damaged ({error}); get it again") from error


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    link = stat.S_ISLNK(info.external_attr >> 16)
    kind = "link" if link else "folder" if info.is_dir() else "file"
    return _Member(info.filename, kind, info.file_size, lambda: archive.open(info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind = "file" if info.isreg() else "folder" if info.isdir() else "link"
    return _Member(info.name, kind, info.size, lambda: archive.extractfile(info))
