"""Shards over S3, over an HTTP server that drops connections, and through pipes that die: every sample, once."""

import http.server
import os
import re
import threading
import time

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from clip_la.data.shards.reader import ShardWriter, expand_urls, read_samples
from clip_la.data.shards.shard_state import shard_hashes
from clip_la.data.shards.sources import ShardOpener
from clip_la.errors import UserError

NUM_SAMPLES = 40
OPENER = ShardOpener(retries=4, backoff_s=0.001)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "a.tar"
    with ShardWriter(path) as writer:
        for i in range(NUM_SAMPLES):
            writer.write({"__key__": f"{i:03d}", "png": bytes([i]) * 20_000, "txt": f"caption {i}"})
    return path


def samples_of(url, opener=OPENER):
    found = []
    samples = list(read_samples(url, opener=opener, on_problem=found.append))
    assert not found
    assert [s["__key__"] for s in samples] == [f"{i:03d}" for i in range(NUM_SAMPLES)]
    assert all(s["png"] == bytes([i]) * 20_000 and s["txt"] == b"caption %d" % i for i, s in enumerate(samples))
    return samples


class Unreliable(http.server.BaseHTTPRequestHandler):
    """Sends at most `at_most` bytes of what it promised, and answers every third request with 503."""

    data = b""
    at_most = 200_000
    ranges = True
    requests = 0

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.answer(send=True)

    def answer(self, send):
        cls = type(self)
        cls.requests += 1
        if cls.requests % 3 == 0:
            self.send_error(503)
            return
        if self.path != "/a.tar":
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.ranges else None
        first, last = (int(asked[1]), int(asked[2] or len(self.data) - 1)) if asked else (0, len(self.data) - 1)
        body = self.data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(self.data)}")
        self.end_headers()
        if send:
            self.wfile.write(body[: self.at_most])
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(data, **options):
        handler = type("Handler", (Unreliable,), {"data": data, **options})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", handler

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_dropped_connections_cost_no_sample(shard, serve, ranges):
    data = shard.read_bytes()
    # Without ranges only a whole answer ever gets to the end, so the drops stop after a while.
    url, handler = serve(data, ranges=ranges, at_most=len(data) // 5)
    if not ranges:
        handler.at_most = property(lambda self: len(data) * self.requests // 6)
    samples_of(f"{url}/a.tar", ShardOpener(retries=12, backoff_s=0.001))
    assert handler.requests > 4


def test_a_missing_remote_shard_is_named(shard, serve):
    url, _ = serve(shard.read_bytes(), at_most=1 << 30)
    with pytest.raises(UserError, match=r"gone\.tar' does not exist"):
        samples_of(f"{url}/gone.tar")


def test_a_server_that_never_recovers_stops_the_run_with_one_line(shard, serve):
    url, _ = serve(shard.read_bytes(), at_most=0)
    with pytest.raises(UserError, match=r"a\.tar' cannot be read beyond byte 0 after 3 tries"):
        samples_of(f"{url}/a.tar", ShardOpener(retries=2, backoff_s=0.001))


def test_cached_shards_are_not_asked_for_again(shard, serve, tmp_path):
    url, handler = serve(shard.read_bytes(), at_most=1 << 30)
    opener = ShardOpener(retries=4, backoff_s=0.001, cache_dir=str(tmp_path / "cache"))
    samples_of(f"{url}/a.tar", opener)
    asked = handler.requests
    samples_of(f"{url}/a.tar", opener)
    assert handler.requests == asked
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_bytes() == shard.read_bytes()


def test_the_cache_keeps_to_its_size(shard, tmp_path):
    size = shard.stat().st_size
    opener = ShardOpener(cache_dir=str(tmp_path / "cache"), cache_gb=2.5 * size / (1 << 30))
    # What cache "memory" keeps beside the shards, which is none.
    corpus = tmp_path / "cache" / "decoded" / "0.npy"
    corpus.parent.mkdir(parents=True)
    corpus.write_bytes(bytes(3 * size))
    for name in "abcd":
        samples_of(f"pipe:cat {shard} # {name}", opener)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_file()]) == 2
    assert corpus.is_file()


def test_the_cache_forgets_what_a_killed_process_was_fetching(shard, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    abandoned, growing = cache / ".0123-a.tar.x.part", cache / ".4567-b.tar.y.part"
    for path in (abandoned, growing):
        path.touch()
    os.utime(abandoned, (time.time() - 7200,) * 2)
    samples_of(f"pipe:cat {shard}", ShardOpener(cache_dir=str(cache)))
    assert not abandoned.exists()
    assert growing.exists()


def test_a_pipe_that_dies_is_run_again_and_goes_on_at_its_byte(shard, tmp_path):
    # The first runs die after 300,000, 600,000, ... bytes.
    count = tmp_path / "count"
    count.write_text("0")
    command = f"n=$(($(cat {count}) + 1)); echo $n > {count}; head -c $((n * 300000)) {shard}; [ $n -ge 3 ]"
    samples_of(f"pipe:{command}")
    assert count.read_text().strip() == "3"


def test_s3(shard, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        system = s3fs.S3FileSystem()
        system.mkdir("bucket")
        for name in ("00000", "00001"):
            system.put(str(shard), f"bucket/{name}.tar")
        assert expand_urls("s3://bucket/*.tar") == ["s3://bucket/00000.tar", "s3://bucket/00001.tar"]
        for url in expand_urls("s3://bucket/{00000..00001}.tar"):
            samples_of(url)
        with pytest.raises(UserError, match="no shard matches"):
            expand_urls("s3://bucket/other*.tar")
        with pytest.raises(UserError, match=r"s3://bucket/00007\.tar' does not exist"):
            samples_of("s3://bucket/00007.tar")
        states = shard_hashes(urls := expand_urls("s3://bucket/*.tar"))
        assert None not in states
        assert states == shard_hashes(urls)
        system.pipe("bucket/00001.tar", shard.read_bytes()[::-1])
        assert [before == now for before, now in zip(states, shard_hashes(urls), strict=True)] == [True, False]
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_any_fsspec_system(shard):
    with fsspec.open("memory://folder/a.tar", "wb") as file:
        file.write(shard.read_bytes())
    samples_of("memory://folder/a.tar")
    assert expand_urls("memory://folder/*.tar") == ["memory:///folder/a.tar"]
    with pytest.raises(UserError, match="Protocol not known"):
        samples_of("nowhere://folder/a.tar")
