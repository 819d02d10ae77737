"""A Hub on this machine: enough of its API to download from, so that what loads from there is tested without a network."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve_repository(repository: str, folder: Path):
    """Serves one model repository; gives the address for `HF_ENDPOINT` and the list of files that were fetched."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(send_body=False)

        def do_GET(self, send_body: bool = True):
            path = unquote(urlsplit(self.path).path)
            info = f"/api/models/{repository}"
            if path.startswith(f"{info}/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": etag(file)}
                    for name, file in files.items()
                ]
                return self.answer(json.dumps(entries).encode(), "application/json", send_body)
            if path == info or path.startswith(f"{info}/revision/"):
                siblings = [{"rfilename": name} for name in files]
                content = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "private": False}
                return self.answer(json.dumps(content).encode(), "application/json", send_body)
            start = f"/{repository}/resolve/"
            name = path[len(start) :].partition("/")[2] if path.startswith(start) else ""
            if name not in files:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if send_body:
                fetched.append(name)
            return self.answer(files[name].read_bytes(), "application/octet-stream", send_body, etag(files[name]))

        def answer(self, body: bytes, kind: str, send_body: bool, tag: str | None = None):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            if tag:
                self.send_header("ETag", f'"{tag}"')
            self.end_headers()
            if send_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
