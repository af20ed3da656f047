"""A stand-in for the Weights & Biases server on loopback: what wandb needs to log online, and nothing is sent anywhere.

The real service cannot be reached from a test machine; the client in the tests is the real one.
"""

import base64
import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Keeps the rows of history that clients stream, by run."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[str, list[dict[str, Any]]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of a test."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        self.read()
        self.answer({})

    def do_POST(self) -> None:
        body = self.read()
        if self.path.startswith("/graphql"):
            request = json.loads(body)
            self.answer({"data": self.resolve(request["query"], request.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            files = json.loads(body).get("files") or {}
            lines = files.get("wandb-history.jsonl", {}).get("content", [])
            self.server.history.setdefault(self.path.split("/")[-2], []).extend(json.loads(line) for line in lines)
            self.answer({"exitcode": None, "limits": {}})
            return
        self.answer({})

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def answer(self, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def resolve(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The few fields that a client asks for when a run is made, logged and finished."""
        found: dict[str, Any] = {}
        if "upsertBucket" in query:
            name = variables.get("name") or "run"
            project = {"id": "1", "name": variables.get("project") or "p", "entity": {"id": "1", "name": "me"}}
            bucket = {
                "id": base64.b64encode(f"Run:v1:{name}".encode()).decode(), "name": name, "displayName": name,
                "description": "", "config": variables.get("config") or "{}", "sweepName": None,
                "historyLineCount": 0, "project": project,
            }  # fmt: skip
            found["upsertBucket"] = {"bucket": bucket, "inserted": True}
        if re.search(r"\bviewer\b", query):
            found["viewer"] = {
                "id": "1", "entity": "me", "username": "me", "name": "me", "flags": "{}", "email": "me@localhost",
                "teams": {"edges": []}, "apiKeys": {"edges": []}, "admin": False,
            }  # fmt: skip
        if "serverInfo" in query:
            versions = {"max_cli_version": "99.0.0"}
            found["serverInfo"] = {"cliVersionInfo": versions, "latestLocalVersionInfo": None, "features": []}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in variables.get("files", [])]
            found["createRunFiles"] = {"runID": "1", "uploadHeaders": [], "files": files}
        for alias in re.findall(r"(\w+)\s*:\s*__type", query):
            found[alias] = {"fields": [], "inputFields": []}
        if "bucket" in query and re.search(r"\b(model|project)\s*\(", query):
            found |= {"model": {"bucket": None}, "project": {"run": None}}
        if "entity(" in query:
            found["entity"] = {"name": "me", "organization": None}
        return found


@contextmanager
def serving() -> Iterator[Server]:
    """A server for the length of the block."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
