"""Published files: fetched from addresses that fail, and archives, honest and hostile, unpacked."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from minicenternet.data import archives
from minicenternet.data.archives import File, Stored, fault, fetch, folder_inside, unpack
from minicenternet.errors import InputError

BODY = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
FILE = File("pack/body.zip", len(BODY), hashlib.sha256(BODY).hexdigest())
CONTENT = {"box/a.txt": b"first", "box/b.txt": b"second" * 1000, "box/unwanted.txt": b"third"}


def place(name: str) -> str | None:
    return f"here/{name}" if name in ("box/a.txt", "box/b.txt") else None


def zipped(path: Path, files: dict[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return path


def tarred(path: Path, files: dict[str, bytes], link: str | None = None, kind: bytes = tarfile.SYMTYPE) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- fetch -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def urls(server) -> list[str]:
    """Two addresses of the file: the first is wrong where a test makes it so."""
    server.files = {"/first": BODY, "/second": BODY}
    return [f"{server.url}/first", f"{server.url}/second"]


def asked(server) -> list[str]:
    return [path for path, _ in server.answers]


def test_the_first_address_that_is_right(server, urls, tmp_path):
    fetch(FILE, tmp_path / "body", urls)
    assert asked(server) == ["/first"] and (tmp_path / "body").read_bytes() == BODY
    fetch(FILE, tmp_path / "body", urls)  # is there, and right
    assert asked(server) == ["/first"]
    (tmp_path / "body").write_bytes(BODY[:-1] + b"?")
    fetch(FILE, tmp_path / "body", urls)
    assert asked(server) == ["/first", "/first"] and (tmp_path / "body").read_bytes() == BODY


@pytest.mark.parametrize("spoilt", [b"?" + BODY[1:], BODY[:-1], BODY + b"?"])
def test_what_is_wrong_is_asked_of_the_next(server, urls, tmp_path, spoilt):
    server.files["/first"] = spoilt
    fetch(FILE, tmp_path / "body", urls)
    assert (tmp_path / "body").read_bytes() == BODY and asked(server)[-1] == "/second"
    assert [path.name for path in tmp_path.iterdir()] == ["body"]


def test_an_address_that_is_gone(server, urls, tmp_path):
    del server.files["/first"]
    fetch(FILE, tmp_path / "body", urls)
    assert asked(server) == ["/second"]
    del server.files["/second"]
    with pytest.raises(InputError, match="(?s)/first cannot be downloaded .*404.*/second cannot be downloaded .*404"):
        fetch(FILE, tmp_path / "other", urls)


def test_half_of_a_file_is_gone_on_with_elsewhere(server, urls, tmp_path):
    server.drops = [30_000, 0, 0, 0, 0, 0]
    fetch(FILE, tmp_path / "body", urls)
    assert server.answers[-1] == ("/second", 30_000) and (tmp_path / "body").read_bytes() == BODY


def test_a_wrong_half_is_thrown_away(server, urls, tmp_path):
    server.files["/first"] = bytes(len(BODY))
    server.drops = [30_000, 0, 0, 0, 0, 0]
    fetch(FILE, tmp_path / "body", urls)
    assert server.answers[-2:] == [("/second", 30_000), ("/second", 0)] and (tmp_path / "body").read_bytes() == BODY


def test_nobody_has_the_right_one(server, urls, tmp_path):
    server.files = dict.fromkeys(server.files, b"?" + BODY[1:])
    with pytest.raises(InputError, match=r"(?s)/first came with SHA-256 \w{64}, expected .*/second came with SHA-256"):
        fetch(FILE, tmp_path / "body", urls)
    assert not list(tmp_path.iterdir())


def test_fault(tmp_path):
    (tmp_path / "body").write_bytes(BODY)
    assert fault(tmp_path / "body", FILE) is None
    assert fault(tmp_path / "body", FILE._replace(size=5)) == "100000 bytes, expected 5"
    assert fault(tmp_path / "body", FILE._replace(sha256="0")) == f"SHA-256 {FILE.sha256}, expected 0"


# ---- unpack ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_what_is_wanted_goes_to_its_place(tmp_path, pack):
    archive = pack(tmp_path / "archive", CONTENT)
    assert unpack(archive, tmp_path / "out", place) == 2
    wanted = {f"here/{name}": CONTENT[name] for name in ("box/a.txt", "box/b.txt")}
    assert everything(tmp_path / "out") == wanted
    whole, half = tmp_path / "out/here/box/a.txt", tmp_path / "out/here/box/b.txt"
    before = whole.stat().st_mtime_ns, whole.stat().st_ino
    half.write_bytes(b"half")
    (tmp_path / "out/here/box/b.txt.new").write_bytes(b"of an interruption")
    assert unpack(archive, tmp_path / "out", place) == 2  # mends what is not whole, leaves alone what is
    assert everything(tmp_path / "out") == wanted and (whole.stat().st_mtime_ns, whole.stat().st_ino) == before


EVIL = ["../evil", "box/../../evil", "/tmp/evil", "C:\\evil", "\\evil", "..\\evil", "//host/evil"]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", EVIL)
def test_names_that_leave_the_folder_are_refused(tmp_path, pack, name):
    archive = pack(tmp_path / "archive", CONTENT | {name: b"evil"})
    with pytest.raises(InputError, match="a name that leaves its folder: nothing of it was unpacked"):
        unpack(archive, tmp_path / "out", lambda member: member)  # even where all names are wanted
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "pack, kind", [(zipped, None), *((tarred, kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE))]
)
def test_links_and_devices_are_refused(tmp_path, pack, kind):
    archive = pack(tmp_path / "archive", CONTENT, "box/link", *([kind] if kind else []))
    with pytest.raises(InputError, match=r"'box/link', a link or a device: nothing of it was unpacked"):
        unpack(archive, tmp_path / "out", place)
    assert not (tmp_path / "out").exists()


def test_links_on_the_way_are_not_followed(tmp_path):
    archive, elsewhere = zipped(tmp_path / "archive", CONTENT), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out/here").mkdir(parents=True)
    os.symlink(elsewhere, tmp_path / "out/here/box")
    with pytest.raises(InputError, match="box is a link to elsewhere"):
        unpack(archive, tmp_path / "out", place)
    with pytest.raises(InputError, match="box is a link to elsewhere"):
        folder_inside(tmp_path / "out", "here/box/deeper")
    (tmp_path / "out/here/box").unlink()
    (tmp_path / "out/here/box").mkdir()
    for name in ("a.txt", "a.txt.new"):  # a file is replaced, not written through
        (elsewhere / name).write_bytes(b"mine!")
        os.symlink(elsewhere / name, tmp_path / "out/here/box" / name)
    unpack(archive, tmp_path / "out", place)
    assert everything(elsewhere) == {"a.txt": b"mine!", "a.txt.new": b"mine!"}
    assert not (tmp_path / "out/here/box/a.txt").is_symlink()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_full_disk_is_named_and_gone_on_from(tmp_path, monkeypatch, pack):
    archive, target = pack(tmp_path / "archive", CONTENT), tmp_path / "out/here/box/b.txt"

    def full_for_b(path, mode):
        return open("/dev/full" if path.name == "b.txt.new" else path, mode.replace("x", "w"))

    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf"cannot write {target}\.new: No space left"):
        patch.setattr(archives, "open", full_for_b, raising=False)
        unpack(archive, tmp_path / "out", place)
    assert everything(tmp_path / "out") == {"here/box/a.txt": b"first"}
    assert unpack(archive, tmp_path / "out", place) == 2 and target.read_bytes() == CONTENT["box/b.txt"]


def test_a_damaged_compressed_archive_is_no_fault_of_the_disk(tmp_path):
    content = tarred(tmp_path / "archive", CONTENT).read_bytes()
    at = content.index(b"secondsecond") + 100
    (tmp_path / "archive.tar.gz").write_bytes(gzip.compress(content[:at]) + b"not gzip" + gzip.compress(content[at:]))
    with pytest.raises(InputError, match=r"archive\.tar\.gz is damaged \(Not a gzipped file"):
        unpack(tmp_path / "archive.tar.gz", tmp_path / "out", place)
    with pytest.raises(InputError, match=r"archive\.tar\.gz is damaged \(Not a gzipped file"):
        Stored(tmp_path / "archive.tar.gz")


def test_a_copy_ends_where_it_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "CHUNK", 10)
    for length, copied in ((1000, 30), (30, 30), (25, 25)):
        assert archives._copy(io.BytesIO(bytes(length)), tmp_path / "copy", 25) == copied
        assert (tmp_path / "copy").stat().st_size == copied


def test_damage_that_is_met_while_copying_is_no_fault_of_the_disk(tmp_path):
    content = bytearray(gzip.compress(b"a") + gzip.compress(b"b"))
    content[len(gzip.compress(b"a"))] = 0  # where the second begins
    with pytest.raises(gzip.BadGzipFile):
        archives._copy(gzip.open(io.BytesIO(bytes(content))), tmp_path / "copy", 100)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_damaged_archives(tmp_path, pack):
    archive = pack(tmp_path / "archive", CONTENT)
    content = archive.read_bytes()
    at = content.index(b"secondsecond")
    cut = content[: at + 100] if pack is tarred else content[:at] + b"S" + content[at + 1 :]
    archive.write_bytes(cut)
    with pytest.raises(InputError, match="archive is damaged"):
        unpack(archive, tmp_path / "out", place)
    assert "here/box/b.txt" not in everything(tmp_path / "out")
    archive.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"is no \.zip and no \.tar"):
        unpack(archive, tmp_path / "out", place)
