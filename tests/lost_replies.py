"""Program: does a search come out the same when a tracking server's replies get lost?

    python -m tests.lost_replies --folder /tmp/lost              # the first reply of each kind, all in one search
    python -m tests.lost_replies --one-by-one --mode 503 --folder /tmp/lost

A small search runs through a proxy in front of a real server. The proxy hands a request that changes something on, and
when the server has done it, drops the connection (`--mode drop`) or answers 503 (`--mode 503`) instead of passing the
server's answer on. The search may wait and go on, or end and be started again; then it is compared with an undisturbed
one as in `cut_at_every_write`. Exit code 1: differences.
"""

import argparse
import http.client
import os
import re
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.kill_search import write_project
from tests.lives import Lives, in_child, prepare
from tests.mlflow_server import Server
from tests.write_counter import read_log, write_hook

__all__ = ["main", "proxy"]

_OURS = {"host", "connection", "transfer-encoding"}
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}
_READING = re.compile(r"/(search|search-datasets|get-history-bulk|get)$")


@contextmanager
def proxy(upstream: str, log: Path, mode: str, is_lost: Callable[[str, int, bool], bool]) -> Iterator[str]:
    """Pass requests on to a server, and lose some replies.

    Args:
        upstream: address of the server.
        log: file to which each changing request adds its kind.
        mode: `drop` or `503`.
        is_lost: takes the request's kind, its number among those of all kinds, and whether it is the first of its kind.

    Yields:
        the proxy's address.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    pid = os.fork()
    if pid == 0:
        try:
            _serve(listener, upstream, log, mode, is_lost)
        finally:
            os._exit(0)
    port = listener.getsockname()[1]
    listener.close()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _serve(
    listener: socket.socket, upstream: str, log: Path, mode: str, is_lost: Callable[[str, int, bool], bool]
) -> None:
    kinds: list[str] = []
    host = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self._body()
            server = http.client.HTTPConnection(host, timeout=120)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OURS}
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            content = answer.read()
            server.close()
            if self._is_lost():
                if mode == "drop":
                    # A reset rather than an orderly end.
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.send_response(503)
                content = b"the server is overloaded"
            else:
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # As `requests` sends an empty file.
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _is_lost(self) -> bool:
            path = urlsplit(self.path).path
            if self.command == "GET" or _READING.search(path):
                return False
            kind = f"{self.command} {_kind(path)}"
            is_first = kind not in kinds
            kinds.append(kind)
            lost = is_lost(kind, len(kinds), is_first)
            with log.open("a") as file:
                file.write(f"{len(kinds)} {kind}{' (lost)' if lost else ''}\n")
            return lost

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_one

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()


def _kind(path: str) -> str:
    """Return a path without what differs between two requests of one kind."""
    path = re.sub(r"(/api/[0-9.]+)?/mlflow(-artifacts)?/", "", path, count=1)
    if path.startswith("artifacts/"):
        return "model file" if "/models/" in path else "artifact"
    return re.sub(r"m-[0-9a-f]{32}|[0-9a-f]{32}", "ID", path)


def _try(lives: Lives, name: str, server: Server, mode: str, is_lost: Callable[[str, int, bool], bool]) -> Any:
    """Run one search in an experiment of its own; return its state, its requests, and its errors."""
    log = lives.folder / f"log-{name}.txt"
    log.unlink(missing_ok=True)
    experiment = f"{name} {time.time_ns()}"
    with proxy(server.uri, log, mode, is_lost) as uri:
        variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": experiment}
        project, _, errors = replace(lives, variables=variables).run(name, [])

    def read() -> Any:
        from mlflow.tracking import MlflowClient

        from tests.search_state import read_state

        state = read_state(server.uri, project, experiment)
        # The registry is one for all experiments, and belongs to the next search now.
        client = MlflowClient(server.uri)
        for model in client.search_registered_models():
            client.delete_registered_model(model.name)
        return state

    return in_child(read), read_log(log), errors


def main(argv: list[str] | None = None) -> int:
    """Run the test that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=["random", "grid", "bayesian", "hyperband"], default="random")
    parser.add_argument("--mode", choices=["drop", "503"], default="drop")
    parser.add_argument("--one-by-one", action="store_true", help="one search for each lost reply")
    parser.add_argument("--all", action="store_true", help="not only the first of each kind")
    parser.add_argument("--from", type=int, default=1, dest="first", help="first request (default 1)")
    parser.add_argument("--every", type=int, default=1, help="step (default 1)")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    given = parser.parse_args(argv)
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
        return _run(given, given.folder.resolve())
    with tempfile.TemporaryDirectory() as temporary:
        return _run(given, Path(temporary).resolve())


def _run(given: argparse.Namespace, folder: Path) -> int:
    from tests.search_state import differences

    prepare(folder)
    data = folder / "data"
    if not data.exists():
        write_project(data, given.algorithm, 1, 1, given.trials)
    words = ["--config", str(data / "search.toml"), "--epochs", "2", "--engine", "inline"]
    lives = Lives("tune", words, [], folder, write_hook(folder / "hook"), cold=False)
    (folder / "server").mkdir(exist_ok=True)
    server = Server(folder / "server")
    server.start()
    num_bad = 0
    try:
        undisturbed, requests, errors = _try(lives, "undisturbed", server, given.mode, lambda *_: False)
        print(f"{len(requests)} changing requests, {len({line.split(maxsplit=1)[1] for line in requests})} kinds")
        assert not errors, errors
        for name, is_lost in _plans(given, requests):
            state, seen, errors = _try(lives, name, server, given.mode, is_lost)
            lost = [line for line in seen if line.endswith("(lost)")]
            found = errors + differences(undisturbed, state)
            num_bad += bool(found) or not lost
            print(f"{name}: {len(lost)} lost, {len(found)} differences: {'; '.join(lost)}", flush=True)
            for line in found:
                print(f"    {line}", flush=True)
    finally:
        server.kill()
    return 1 if num_bad else 0


def _plans(given: argparse.Namespace, requests: list[str]) -> Iterator[tuple[str, Callable[[str, int, bool], bool]]]:
    if not given.one_by_one:
        yield f"{given.mode}-each-kind", lambda kind, number, is_first: is_first
        return
    kinds: set[str] = set()
    for line in requests[given.first - 1 :: given.every]:
        place, kind = line.split(maxsplit=1)
        if given.all or kind not in kinds:
            yield f"{given.mode}-{place}", partial(_is_at, int(place))
        kinds.add(kind)


def _is_at(place: int, _kind: str, number: int, _is_first: bool) -> bool:
    return number == place


if __name__ == "__main__":
    sys.exit(main())
