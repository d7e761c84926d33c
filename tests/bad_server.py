"""A server on this machine for downloads that go wrong."""

from __future__ import annotations

import http.server
import re


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, badly where asked to; `answers` notes the path of each answer and where in the file it began."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}  # path with its slash -> content
        self.kind = "application/octet-stream"
        self.ranges = True  # are ranges answered
        self.drops: list[int] = []  # bytes after which the connection breaks, one for each answer
        self.errors: list[int] = []  # statuses to begin with
        self.shift = 0  # added to the start of ranges
        self.length = True  # is the length told
        self.lie = 0  # added to the length told
        self.answers: list[tuple[str, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, start = self.server, 0
        if server.errors or self.path not in server.files:
            self.send_error(server.errors.pop(0) if server.errors else 404)
            return
        body = server.files[self.path]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        size = len(body)
        if asked and server.ranges:
            start = int(asked[1]) + server.shift
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(size - start + server.lie))
        self.send_header("Content-Type", server.kind)
        server.answers.append((self.path, start))  # before anything is sent: some hang up at the headers
        self.end_headers()
        stop = start + server.drops.pop(0) if server.drops else size
        self.wfile.write(body[start:stop])

    def log_message(self, *_) -> None:
        pass
