"""A small S3 on loopback: as much of its API as a dataset's upload, check and listing need."""

import gc
import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Store:
    """The objects by path, and what befell them."""

    def __init__(self, *buckets):
        self.buckets = set(buckets)
        self.objects = {}  #: "/bucket/key" → bytes
        self.log = []  #: (method, path)
        self.spoil = 0  #: so many puts to come are stored damaged
        self.refuse = 0  #: so many puts to come are refused
        self.slow = 0  #: so many puts to come are too fast for it
        self.unlisted = False  #: nobody may list what is there

    def put(self, path, data):
        """Store an object; answers whether it was taken."""
        if self.refuse:
            self.refuse -= 1
            return False
        if self.spoil:
            self.spoil -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        self.objects[path] = data
        return True


@contextmanager
def served(store):
    """Serve a store; gives the address."""

    class Handler(_Handler):
        pass

    Handler.store = store
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def client(monkeypatch, *buckets):
    """Serve a store in an environment that points at it."""
    import s3fs

    store = Store(*buckets)
    with served(store) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
        s3fs.S3FileSystem.clear_instance_cache()
        gc.collect()  # they close their sessions when they are collected, which elsewhere fails


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer's body waits 40 ms for its head's ACK

    def log_message(self, *_):
        pass

    def do_PUT(self):
        data = self._body()
        if self._bucket() not in self.store.buckets:
            return self._error(404, "NoSuchBucket")
        if self.store.slow:
            self.store.slow -= 1
            return self._error(503, "SlowDown", **{"Retry-After": "7"})
        if not self.store.put(self._path(), data):
            return self._error(403, "AccessDenied")
        self._answer(200, ETag=_etag(self.store.objects[self._path()]))

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        if self._bucket() not in self.store.buckets:
            return self._error(404, "NoSuchBucket")
        if "list-type" in query and self.store.unlisted:
            return self._error(403, "AccessDenied")
        if "list-type" in query:
            return self._list(query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        if self._path() not in self.store.objects:
            return self._error(404, "NoSuchKey")
        data = self.store.objects[self._path()]
        status, extra = 200, {}
        if asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            first, last = int(first), min(int(last or len(data)), len(data) - 1)
            status, extra = 206, {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            data, whole = data[first : last + 1], data
        else:
            whole = data
        self._answer(status, data, ETag=_etag(whole), **extra)

    do_HEAD = do_GET

    def do_DELETE(self):
        self._body()
        self.store.objects.pop(self._path(), None)
        self._answer(204)

    def _list(self, prefix, delimiter):
        start = f"/{self._bucket()}/"
        contents, folders = "", set()
        for path in sorted(self.store.objects):
            key = path.removeprefix(start)
            if not path.startswith(start) or not key.startswith(prefix):
                continue
            head, more, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if more:
                folders.add(prefix + head + delimiter)
                continue
            data = self.store.objects[path]
            contents += (
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                f"<ETag>{escape(_etag(data))}</ETag>"
                "<LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        common = "".join(
            f"<CommonPrefixes><Prefix>{escape(each)}</Prefix></CommonPrefixes>"
            for each in sorted(folders)
        )
        self._answer(
            200,
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}{common}"
            "</ListBucketResult>".encode(),
        )

    def _path(self):
        return unquote(urlsplit(self.path).path)

    def _bucket(self):
        return self._path().split("/")[1]

    def _body(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        out = b""
        while data:
            head, _, data = data.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            out, data = out + data[:size], data[size + 2 :] if size else b""
        return out

    def _error(self, status, code, **headers):
        text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self._answer(status, text.encode(), **headers)

    def _answer(self, status, data=b"", **headers):
        self.store.log.append((self.command, self._path()))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(data):
    return f'"{hashlib.md5(data).hexdigest()}"'
