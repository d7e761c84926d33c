"""Downloads from a server that misbehaves."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import socket

import numpy as np
import pytest

from minicenternet import download as download_module
from minicenternet.download import download, sha256
from minicenternet.errors import InputError

BODY = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()


def fetch(server, path, max_bytes=300_000) -> None:
    server.files.setdefault("/net.pth", BODY)
    download(f"{server.url}/net.pth", path, max_bytes, "ask somebody")


def starts(server) -> list[int]:
    return [start for _, start in server.answers]


def test_a_fetch(server, tmp_path):
    fetch(server, tmp_path / "new" / "net.pth")
    assert (tmp_path / "new" / "net.pth").read_bytes() == BODY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["net.pth"]
    assert starts(server) == [0]


def test_broken_connections_are_gone_on_with(server, tmp_path):
    server.drops = [100_000, 0, 0, 50_000, 1]
    server.errors = [503]
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert starts(server) == [0, 100_000, 100_000, 100_000, 150_000, 150_001]


def test_without_ranges_it_begins_again(server, tmp_path):
    server.drops, server.ranges = [100_000, 200_000], False
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert starts(server) == [0, 0, 0]


def test_a_server_that_is_down_is_given_up_and_gone_on_with_later(server, tmp_path):
    server.drops = [100_000, 0, 0, 0, 0, 0]
    with pytest.raises(
        InputError, match=r"cannot be downloaded \(the connection broke\)\. What arrived is kept in .*\.part, and"
    ):
        fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth.part").read_bytes() == BODY[:100_000]
    server.drops = []
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert starts(server) == [0, *[100_000] * 6]


def test_nobody_answers(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_module, "PAUSE", 0)
    with socket.socket() as silent:  # holds a port and does not listen: let go, it could be the next server's
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth"
        with pytest.raises(InputError, match=r"cannot be downloaded .*\. Try again later, or ask somebody"):
            download(url, tmp_path / "net.pth", len(BODY), "ask somebody")


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 1])
def test_a_part_that_is_whole_or_too_long(server, tmp_path, size):
    (tmp_path / "net.pth.part").write_bytes((BODY + b"?")[:size])
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert starts(server) == ([] if size == len(BODY) else [0])


def test_a_range_that_was_not_asked_for_is_not_used(server, tmp_path):
    server.drops, server.shift = [100_000], 5
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY
    assert starts(server) == [0, 100_005, 0]


def test_a_server_that_does_not_tell_the_length(server, tmp_path):
    server.length = False
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY


def test_a_server_that_lies_about_the_length(server, tmp_path):
    server.lie = -1000  # then the end is missing, and who knows the checksum sees it
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY[:-1000]
    server.lie = 1000  # then the rest is asked for, and there is none
    fetch(server, tmp_path / "longer.pth")
    assert sha256(tmp_path / "longer.pth") == hashlib.sha256(BODY).hexdigest()
    assert starts(server) == [0, 0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named_and_gone_on_from(server, tmp_path, monkeypatch):
    opened, part = [], tmp_path / "net.pth.part"

    def full_the_second_time(path, mode):
        opened.append(path)
        return open(path if len(opened) == 1 else "/dev/full", mode)

    server.drops = [100_000]
    with monkeypatch.context() as patch, pytest.raises(InputError, match=rf"cannot write {part}: No space left"):
        patch.setattr(download_module, "open", full_the_second_time, raising=False)
        fetch(server, tmp_path / "net.pth")
    assert part.stat().st_size == 100_000
    fetch(server, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == BODY and starts(server) == [0, 100_000, 100_000]


def test_a_network_that_breaks_is_no_full_disk(server, tmp_path, monkeypatch):
    """Such as "No route to host" in the middle of a file, which is an OSError of its own: it is tried again."""
    read, broken = http.client.HTTPResponse.read, [OSError(errno.EHOSTUNREACH, "No route to host")]

    def read_or_break(response, amount):
        if broken and (tmp_path / "net.pth.part").is_file():
            raise broken.pop()
        return read(response, amount)

    monkeypatch.setattr(http.client.HTTPResponse, "read", read_or_break)
    fetch(server, tmp_path / "net.pth")
    assert not broken and (tmp_path / "net.pth").read_bytes() == BODY


def test_what_no_attempt_would_mend(server, tmp_path):
    server.errors = [404]
    with pytest.raises(InputError, match="404.*; ask somebody"):
        fetch(server, tmp_path / "net.pth")
    server.kind = "text/html; charset=utf-8"
    with pytest.raises(InputError, match="is a web page, not a file; ask somebody"):
        fetch(server, tmp_path / "net.pth")
    server.kind = "application/octet-stream"
    with pytest.raises(InputError, match="larger than 200000 bytes, .*; ask somebody"):
        fetch(server, tmp_path / "net.pth", 200_000)
    assert not (tmp_path / "net.pth").exists() and len(starts(server)) == 2
