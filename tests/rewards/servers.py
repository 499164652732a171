"""A real server on this machine, whose answers a test writes."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Hands each POST to `server.answers(self, body)`; knows no HEAD, as most servers."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        if len(body := self.rfile.read(length)) < length:
            return  # the other side has given up
        self.server.seen.append((dict(self.headers), json.loads(body)))
        self.server.answers(self, json.loads(body))

    def say(self, status: int, text: str | bytes, **headers: str) -> None:
        text = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def drip(self, forever: bytes) -> None:
        """One byte at a time, until the other side has had enough."""
        try:
            while True:
                for byte in forever:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.01)
        except OSError:
            pass

    def log_message(self, *words):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # many ask at the same time

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # the other side has given up
            super().handle_error(request, client_address)


@contextmanager
def serving(answers: Callable[[Handler, dict], None]) -> Iterator[ThreadingHTTPServer]:
    """A server with `url`, and in `seen` what it was sent: (headers, body) of each POST."""
    server = Server(("127.0.0.1", 0), Handler)
    server.answers, server.seen = answers, []
    server.url = f"http://127.0.0.1:{server.server_port}/score"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
