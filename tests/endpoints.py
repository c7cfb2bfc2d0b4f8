"""Endpoints that messages are sent to, real ones on 127.0.0.1: an HTTP server, and a mail server."""

from __future__ import annotations

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook(ThreadingHTTPServer):
    """Keeps what it is sent. `does`: "answer" (200), "refuse" (500), "hang" until it is closed."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.does = "answer"
        self.taken: list[dict[str, Any]] = []
        self.asked = 0
        self.closing = threading.Event()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.asked += 1
                if webhook.does == "hang":
                    webhook.drip(self)
                    return
                if webhook.does == "answer":
                    webhook.taken.append({**json.loads(body), "authorization": self.headers["Authorization"]})
                self.send_response(200 if webhook.does == "answer" else 500)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def drip(self, handler: BaseHTTPRequestHandler) -> None:
        """A byte now and then: no timeout between two of them ever ends it."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.closing.wait(0.2):
            handler.wfile.write(b".")

    @property
    def url(self) -> str:
        return f"json://bob:geheim99@127.0.0.1:{self.server_port}/tok3n"

    @property
    def about(self) -> list[str]:
        """What the messages it has taken were about."""
        return [message["about"] for message in self.taken]

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class MailServer(socketserver.ThreadingTCPServer):
    """Takes any mail, and keeps it as text."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.mails: list[str] = []
        mails = self.mails

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 here\r\n")
                while line := self.rfile.readline():
                    if line.upper().startswith(b"DATA"):
                        self.wfile.write(b"354 go on\r\n")
                        mails.append(b"".join(iter(self.rfile.readline, b".\r\n")).decode())
                    self.wfile.write(b"250 yes\r\n")

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"mailto://127.0.0.1:{self.server_address[1]}?from=relearnd@example.org&to=ann@example.org&mode=insecure"

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
