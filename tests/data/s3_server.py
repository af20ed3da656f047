"""A small part of S3 on the loopback, which fails as it is told to: GET with Range, HEAD, ListObjectsV2.

The same addresses serve plain HTTP clients, for objects are GET /bucket/key there too.
"""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from typing_extensions import override

BUCKET = "corpus"


@dataclass
class Faults:
    """What goes wrong; changed by tests while the server runs. Objects are named by a part of their key."""

    status_first: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The first n requests for an object get a status."""
    drop_first: dict[str, int] = field(default_factory=dict)
    """The connection of the first n requests for an object is cut in the middle of the body."""
    corrupt_first: dict[str, int] = field(default_factory=dict)
    """The body of the first n requests for an object has flipped bytes."""
    missing: set[str] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)
    truncated: dict[str, int] = field(default_factory=dict)
    """An object holds only its first n bytes, and says so."""
    slow_s: float = 0.0
    """Pause before each 64 KiB of a body."""
    without_ranges: bool = False
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Range of every request."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, part: str, method: str = "GET") -> int:
        """Requests for an object."""
        with self.lock:
            return sum(part in path for found, path, _ in self.requests if found == method)

    def spend(self, table: dict[str, int], key: str) -> bool:
        """Whether one more of a number of failures is due."""
        with self.lock:
            for part, left in table.items():
                if part in key and left > 0:
                    table[part] = left - 1
                    return True
        return False

    def status(self, key: str) -> int | None:
        """The status that a request for an object is refused with."""
        with self.lock:
            if any(part in key for part in self.missing):
                return 404
            if any(part in key for part in self.forbidden):
                return 403
            for part, (left, status) in self.status_first.items():
                if part in key and left > 0:
                    self.status_first[part] = (left - 1, status)
                    return status
        return None


class Server(ThreadingHTTPServer):
    """Serves a folder as a bucket."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.faults = Faults()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def storage(self) -> dict[str, object]:
        """Options of s3fs that lead here."""
        return {"endpoint_url": self.endpoint, "key": "nobody", "secret": "nothing", "skip_instance_cache": True}

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are what is tested."""


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    @override
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        split = urlsplit(self.path)
        bucket, _, key = unquote(split.path).lstrip("/").partition("/")
        with self.server.faults.lock:
            self.server.faults.requests.append((self.command, split.path, self.headers.get("Range", "")))
        if bucket != BUCKET:
            self._refuse(404, body=body)
        elif key:
            self._serve_object(key, body=body)
        else:
            self._serve_list(parse_qs(split.query, keep_blank_values=True))

    def _serve_object(self, key: str, *, body: bool) -> None:
        faults = self.server.faults
        status = faults.status(key)
        path = self.server.root / key
        if status is None and not path.is_file():
            status = 404
        if status is not None:
            self._refuse(status, body=body)
            return
        data = path.read_bytes()
        for part, size in faults.truncated.items():
            data = data[:size] if part in key else data
        start, end, code = 0, len(data), 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked and not faults.without_ranges:
            start, end, code = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data)), 206
            if start >= len(data):
                self._refuse(416, body=body)
                return
        part = data[start:end]
        if body and faults.spend(faults.corrupt_first, key):
            middle = len(part) // 2
            part = part[:middle] + bytes(255 - byte for byte in part[middle : middle + 4096]) + part[middle + 4096 :]
        self.send_response(code)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.send_header("Last-Modified", formatdate(path.stat().st_mtime, usegmt=True))
        self.send_header("Accept-Ranges", "none" if faults.without_ranges else "bytes")
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if body:
            self._send(part, cut=faults.spend(faults.drop_first, key))

    def _send(self, data: bytes, *, cut: bool) -> None:
        for start in range(0, len(data) // 2 if cut else len(data), 1 << 16):
            if self.server.faults.slow_s:
                time.sleep(self.server.faults.slow_s)
            self.wfile.write(data[start : min(start + (1 << 16), len(data) // 2 if cut else len(data))])
        if cut:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def _serve_list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        root = self.server.root
        keys = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        found, folders = [], set()
        for key in keys:
            gone = any(part in key for part in self.server.faults.missing)
            if not key.startswith(prefix) or gone:
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            size = next((n for part, n in self.server.faults.truncated.items() if part in key), None)
            size = (root / key).stat().st_size if size is None else size
            found.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f'<ETag>"e"</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>'
            )
        found += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)]
        text = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(found)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(found)}</ListBucketResult>"
        )
        self._answer(200, text.encode(), body=True)

    def _refuse(self, status: int, *, body: bool) -> None:
        code = {404: "NoSuchKey", 403: "AccessDenied", 416: "InvalidRange", 503: "SlowDown"}.get(
            status, "InternalError"
        )
        text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as told</Message></Error>'
        self._answer(status, text.encode(), body=body)

    def _answer(self, status: int, data: bytes, *, body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """Serve a folder while the block runs."""
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
