"""A server for what is downloaded, on this machine."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

CONTENT = bytes(range(256)) * 9000  # over two reads of a mebibyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serves files of a folder, and CONTENT for every other path, half of it under /truncated; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = folder / self.path.lstrip("/")
            content = file.read_bytes() if file.is_file() else CONTENT
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path == "/truncated" else content)

        def log_message(self, *_: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()
