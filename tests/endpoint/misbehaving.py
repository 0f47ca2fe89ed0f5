"""A small HTTP server that does to each request what the test says, on 127.0.0.1."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from maieutic.endpoint import Endpoint

Behaviour = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def send(request: BaseHTTPRequestHandler, status: int, content: str, kind: str = "application/json", **headers: str):
    """A whole answer."""
    body = content.encode()
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


def chat_json(text: str | None, finish: str = "stop") -> str:
    """What a server says for this message; 7 tokens read and 3 written."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


def says(text: str, finish: str = "stop") -> Behaviour:
    return lambda request, body: send(request, 200, chat_json(text, finish))


def status(code: int, content: str = '{"error": "no"}', **headers: str) -> Behaviour:
    return lambda request, body: send(request, code, content, **headers)


def half_of_it(request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """The connection ends in the middle of the answer that was announced."""
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"choices": [{"mess')
    request.wfile.flush()
    request.connection.shutdown(socket.SHUT_RDWR)


def broken_json(request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(request, 200, chat_json("All is well.")[:40])


def web_page(request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    send(request, 200, "<html>Please log in</html>", "text/html")


def closes(request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


class Server:
    """Takes each request to the next of `behaviours`, and to the last of them ever after."""

    def __init__(self) -> None:
        self.behaviours: list[Behaviour] = [says("Fine. <score>8</score>")]
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.ended = threading.Event()
        outer, lock = self, threading.Lock()

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    index = min(len(outer.bodies), len(outer.behaviours) - 1)
                    outer.bodies.append({**body, "path": self.path})
                    outer.headers.append(dict(self.headers))
                    outer.times.append(time.monotonic())
                outer.behaviours[index](self, body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True, kwargs={"poll_interval": 0.02}).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def hangs(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        """Says nothing until the test is over."""
        self.ended.wait(30)

    def drips(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        """A byte now and then: no single wait is long."""
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", "1000")
        request.end_headers()
        while not self.ended.wait(0.05):
            request.wfile.write(b" ")
            request.wfile.flush()

    def endpoint(self, **terms: Any) -> Endpoint:
        """An impatient client."""
        return Endpoint(self.url, "judge", **{"timeout_seconds": 10.0, "first_wait_seconds": 0.01, **terms})

    def close(self) -> None:
        self.ended.set()
        self.http.shutdown()
        self.http.server_close()
