"""`fetch` against a local server that supports Range, truncates, or lies."""

import hashlib
import http.server
import threading

import pytest

from kshot.storage.download import DownloadError, fetch

BODY = bytes(range(256)) * 2000  # 512,000 bytes
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        span = self.headers.get("Range") if server.ranges else None
        server.seen.append(self.headers.get("Range"))
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        if self.path == "/absent":
            self.send_error(404)
            return
        if start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        self.wfile.write(BODY[start:][: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges, server.cut, server.seen = True, None, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/file"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_arrives_and_is_kept(server, tmp_path):
    path = fetch(server.url, tmp_path / "deep" / "file", md5=MD5)
    assert path.read_bytes() == BODY
    assert fetch(server.url, path, sha256=hashlib.sha256(BODY).hexdigest()) == path
    assert len(server.seen) == 1
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_part_is_resumed(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    assert fetch(server.url, tmp_path / "file", md5=MD5).read_bytes() == BODY
    assert server.seen == ["bytes=1000-"]


def test_a_whole_part_is_taken(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY)
    assert fetch(server.url, tmp_path / "file", md5=MD5).read_bytes() == BODY


@pytest.mark.parametrize("stale", [b"z" * 1000, b"z" * len(BODY), b"z" * (len(BODY) + 5)])
def test_a_part_of_another_file_is_thrown_away(server, tmp_path, stale):
    (tmp_path / "file.part").write_bytes(stale)
    assert fetch(server.url, tmp_path / "file", md5=MD5).read_bytes() == BODY


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    assert fetch(server.url, tmp_path / "file", md5=MD5).read_bytes() == BODY


def test_broken_transfers_go_on_where_they_stopped(server, tmp_path):
    server.cut = 200_000
    assert fetch(server.url, tmp_path / "file", md5=MD5).read_bytes() == BODY
    assert server.seen == [None, "bytes=200000-", "bytes=400000-"]


def test_giving_up_keeps_the_part_and_the_next_call_finishes(server, tmp_path):
    server.cut = 100_000
    with pytest.raises(DownloadError, match=r"200000 of 512000 bytes after 2 attempts.*KSHOT_DATA"):
        fetch(server.url, tmp_path / "file", md5=MD5, attempts=2)
    assert not (tmp_path / "file").exists()
    server.cut = None
    assert fetch(server.url, tmp_path / "file", md5=MD5).read_bytes() == BODY


def test_a_wrong_checksum_never_takes_the_place(server, tmp_path):
    with pytest.raises(DownloadError, match=f"md5 of .* is {MD5}, expected 0000"):
        fetch(server.url, tmp_path / "file", md5="0000")
    assert list(tmp_path.iterdir()) == []


def test_another_file_in_the_place_is_not_overwritten(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DownloadError, match="Move it away"):
        fetch(server.url, tmp_path / "file", md5=MD5)
    assert (tmp_path / "file").read_text() == "mine"


def test_not_found_and_offline_say_what_to_do(server, tmp_path):
    with pytest.raises(DownloadError, match=r"404.*put it at .*KSHOT_DATA"):
        fetch(server.url.replace("file", "absent"), tmp_path / "file")
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/x: cannot reach.*put it at"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", attempts=1)


def test_an_unwritable_folder(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot write"):
        fetch(server.url, tmp_path / "file" / "x", md5=MD5)
