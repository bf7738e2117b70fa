"""What shards hold, as hashes, without reading what need not be read: remote ones are asked for their state."""

import json
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from clip_la.data.shards.remote import HTTP, PIPE, TIMEOUT_S, is_remote
from clip_la.fingerprint import RACY_S, THREADS, file_hashes

# What object stores say of a file that changes with its content; each by itself is enough.
CONTENT_MARKS = ("etag", "md5hash", "content_md5", "generation", "versionid", "checksum", "blob_id", "ino")


def shard_hashes(urls: Sequence[str]) -> list[str | None]:
    """For each shard something that changes when its content does.

    Of a local shard the hash of its bytes; of a remote one address, size and ETag or time of change, as its server says
    them; None for a pipe, and for a server that says too little.
    """
    local = [url for url in urls if not is_elsewhere(url)]
    elsewhere = [url for url in urls if is_elsewhere(url)]
    found: dict[str, str | None] = dict(zip(local, file_hashes(local, len(local)), strict=True))
    with ThreadPoolExecutor(THREADS) as pool:
        found |= zip(elsewhere, pool.map(_remote_state, elsewhere), strict=True)
    return [found[url] for url in urls]


def is_elsewhere(url: str) -> bool:
    """Whether a shard is no file here: an address or a pipe."""
    return is_remote(url) or url.startswith(PIPE)


def _remote_state(url: str) -> str | None:
    """Address, size and ETag or time of change of a remote shard as one text; None where these are not to be had."""
    if url.startswith(PIPE):
        return None
    try:
        state = _http_state(url) if url.startswith(HTTP) else _fsspec_state(url)
    except Exception:  # network libraries raise many families; whoever reads the shard says what is wrong with it
        return None
    return None if state is None else json.dumps([url, state], sort_keys=True, default=str)


def _http_state(url: str) -> dict[str, Any] | None:
    # Not HEAD: an address that is signed for reading allows nothing else.
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        headers = answer.headers
    size = (headers.get("Content-Range") or headers.get("Content-Length") or "").rpartition("/")[2]
    if headers.get("ETag"):
        return {"etag": headers["ETag"], "size": size}
    modified, date = headers.get("Last-Modified"), headers.get("Date")
    if not modified or not date or not size:
        return None
    # Times of whole seconds: a file as young as that may change once more unnoticed.
    settled = parsedate_to_datetime(date) - parsedate_to_datetime(modified) > timedelta(seconds=RACY_S)
    return {"modified": modified, "size": size} if settled else None


def _fsspec_state(url: str) -> dict[str, Any] | None:
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    info = system.info(path)
    marks = {key: value for key, value in info.items() if key.lower() in CONTENT_MARKS and value}
    if not marks:
        marks = {"modified": str(system.modified(path))}
    return {**marks, "size": info.get("size"), "mtime": info.get("mtime")}
