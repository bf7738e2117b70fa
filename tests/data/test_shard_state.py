"""What is said of shards without reading them: it changes with the content, or it is said that nobody knows."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from clip_la.data.shards.shard_state import shard_hashes
from clip_la.fingerprint import file_hash

LATER = "Sat, 28 Nov 2026 12:00:00 GMT"


@pytest.fixture
def server():
    """An HTTP server that answers each path with the headers put into `server.told`."""
    told: dict[str, dict[str, str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = told.get(self.path)
            # The state is asked for with a request for one byte, which addresses signed for reading allow.
            assert self.headers["Range"] == "bytes=0-0"
            self.send_response_only(404 if headers is None else 200 if "Content-Length" in headers else 206)
            for name, value in {"Date": LATER, "Content-Length": "1", **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.told = told
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()


def test_local_shards_go_by_content_and_keep_their_order(tmp_path: Path):
    for name, data in (("b.tar", b"1"), ("a.tar", b"1"), ("c.tar", b"2")):
        (tmp_path / name).write_bytes(data)
    urls = [str(tmp_path / name) for name in ("c.tar", "a.tar", "b.tar")]
    assert shard_hashes(urls) == [file_hash(url) for url in urls]
    assert len(set(shard_hashes(urls))) == 2


WEEK_AGO = {"Last-Modified": "Sat, 21 Nov 2026 12:00:00 GMT"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"1"'}, {"ETag": '"2"'}),
        ({"ETag": '"1"', "Content-Range": "bytes 0-0/10"}, {"ETag": '"1"', "Content-Range": "bytes 0-0/11"}),
        ({**WEEK_AGO, "Content-Range": "bytes 0-0/10"}, {**WEEK_AGO, "Content-Range": "bytes 0-0/11"}),
        ({**WEEK_AGO, "Content-Length": "10"}, {**WEEK_AGO, "Content-Length": "11"}),
        (WEEK_AGO, {"Last-Modified": "Sat, 21 Nov 2026 12:00:01 GMT"}),
    ],
)
def test_a_server_tells_of_changes(server, before: dict[str, str], after: dict[str, str]):
    url = f"{server.url}/a.tar"
    server.told["/a.tar"] = before
    first = shard_hashes([url])
    assert first == shard_hashes([url])
    assert first != [None]
    server.told["/a.tar"] = after
    assert first != shard_hashes([url])
    # Tags mean something for their own address alone.
    server.told["/b.tar"] = before
    assert first != shard_hashes([f"{server.url}/b.tar"])


def test_where_nothing_is_told_nothing_is_known(server, tmp_path: Path):
    server.told["/silent.tar"] = {"Content-Range": "bytes 0-0/10"}
    server.told["/young.tar"] = {"Last-Modified": LATER}
    unknown = [f"{server.url}/{name}.tar" for name in ("silent", "young", "absent")]
    unknown += ["pipe:cat a.tar", "memory://nowhere/a.tar", "nonsense://x"]
    (tmp_path / "a.tar").write_bytes(b"1")
    local = str(tmp_path / "a.tar")
    assert shard_hashes([*unknown, local]) == [*[None] * 6, file_hash(local)]


def test_an_object_store_tells_of_changes():
    system = fsspec.filesystem("memory")
    system.pipe("/states/a.tar", b"one")
    first = shard_hashes(["memory://states/a.tar"])
    assert first == shard_hashes(["memory://states/a.tar"])
    assert first != [None]
    system.pipe("/states/a.tar", b"two")
    assert first != shard_hashes(["memory://states/a.tar"])
