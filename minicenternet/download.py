"""Files from elsewhere: fetched with resume, checked by their SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from .errors import InputError

ATTEMPTS, PAUSE, TIMEOUT = 5, 1.0, 30.0  # downloads in a row that bring nothing; seconds after the first; for an answer


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, path: Path, max_bytes: int, otherwise: str) -> None:
    """Fetch a file; what arrives is kept in PATH.part until it is whole, so that the next attempt goes on from there.

    max_bytes: how long the file may be.  otherwise: what a reader can do where this fails, the end of every message.
    Raises InputError when the server refuses, sends a web page or more than max_bytes, when five attempts in a row
    bring nothing, and when the disk is full.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before, reason = _size(part), "the connection broke"
        try:
            if _fetch(url, part, max_bytes, otherwise):
                os.replace(part, path)
                return
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise InputError(f"{url} cannot be downloaded ({error}); {otherwise}") from error
            reason = str(error)
        except OSError as error:
            raise InputError(
                f"cannot write {part}: {error.strerror or error}. What arrived before is kept; free some space, and "
                "the same command goes on from there"
            ) from error
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            kept = f"What arrived is kept in {part}, and the same command goes on from there. " if _size(part) else ""
            raise InputError(f"{url} cannot be downloaded ({reason}). {kept}Try again later, or {otherwise}")
        time.sleep(PAUSE * failures)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fetch(url: str, part: Path, max_bytes: int, otherwise: str) -> bool:
    """Append to `part` what is lacking, or begin it again, and return whether it is whole."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "minicenternet"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers["Content-Range"] == f"bytes */{start}":
            return True  # the connection broke just after the last byte
        part.unlink()  # longer than the file: of another one
        return False
    with response:
        if response.headers.get_content_type() == "text/html":
            raise InputError(f"{url} is a web page, not a file; {otherwise}")
        if response.status != 206:
            start = 0  # the server knows no ranges: it begins again
        elif not (response.headers["Content-Range"] or "").startswith(f"bytes {start}-"):
            part.unlink()
            return False
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        with (
            open(part, "ab" if start else "wb") as file,
            tqdm(total=total, initial=start, unit="B", unit_scale=True, leave=False, disable=None, delay=1) as bar,
        ):
            while chunk := _received(response):
                if file.tell() + len(chunk) > max_bytes:
                    raise InputError(f"{url} is larger than {max_bytes} bytes, the most that was expected; {otherwise}")
                file.write(chunk)
                bar.update(len(chunk))
            return total is None or file.tell() == total


def _received(response: http.client.HTTPResponse) -> bytes:
    """Return the next of what arrives.  Raises ConnectionError for whatever breaks on the way: no disk is meant."""
    try:
        return response.read(2**16)
    except OSError as error:
        raise ConnectionError(str(error)) from error
