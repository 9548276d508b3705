"""An http server of the internet redirects nobody into a private network, nor from https to http."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore, FileStoreConfig, redirects
from cistron.datasets.files.redirects import RedirectError, is_inner, refuse_redirect
from cistron.trainer.checkpoints import Folder
from cistron.trainer.errors import CheckpointError
from yarl import URL

TEXT = b"a document\n"
INNER = [
    *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254"),
    *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "ff02::1"),
    *("::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1"),
]
OUTER = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
# as getaddrinfo, and so connecting, reads them
SPELLINGS = ["2130706434", "0x7f000002", "0177.0.0.2", "127.2", "0x7f.2", "0"]


class Server(ThreadingHTTPServer):
    """Redirects /to to `location`, and has TEXT everywhere else. Keeps the headers of its requests."""

    daemon_threads = True
    location = ""
    header = "Location"

    def __init__(self, host: str) -> None:
        super().__init__((host, 0), Handler)
        self.seen: list[dict[str, str]] = []

    def url(self, path: str, host: str = "") -> str:
        return f"http://{host or self.server_address[0]}:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD and GET alike, by the location and the header that its server is set to."""

    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: requests are no part of the output of tests."""

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))
        redirected = "/to/" in self.path  # which a proxy gets with the whole URL before it
        self.send_response(302 if redirected else 200)
        if redirected:
            self.send_header(self.server.header, self.server.location)
        body = b"" if redirected else TEXT
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    """A server of the internet, which 127.0.0.1 stands for here, and one of this host (127.0.0.2)."""
    monkeypatch.setattr(redirects, "is_inner", lambda address: address != "127.0.0.1" and is_inner(address))
    with ExitStack() as stack:
        outer, inner = (stack.enter_context(Server(host)) for host in ("127.0.0.1", "127.0.0.2"))
        for server in (outer, inner):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(server.shutdown)
        yield outer, inner


@pytest.fixture
def proxy(servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> Server:
    """The inner server as the proxy that the environment names, by a name, and a client that takes it."""
    _, inner = servers
    monkeypatch.setenv("http_proxy", f"http://localhost:{inner.server_port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr(socket, "getaddrinfo", only_localhost)
    monkeypatch.setitem(fsspec.config.conf, "http", {"client_kwargs": {"trust_env": True}})
    return inner


def only_localhost(host: str, *arguments: object, getaddrinfo: Any = socket.getaddrinfo, **more: object) -> Any:
    """Know a single name, as a host does whose names its proxy looks up; it is that of the inner server."""
    if host.endswith(".example"):
        raise socket.gaierror("Name or service not known")
    return getaddrinfo("127.0.0.2" if host == "localhost" else host, *arguments, **more)


def test_a_proxy_may_be_private_and_knows_names_that_this_host_does_not(proxy: Server) -> None:
    assert read("http://data.example/x.txt") == TEXT
    proxy.location = "http://mirror.example/x.txt"
    assert read("http://data.example/to/x.txt") == TEXT


def test_nor_does_a_redirect_lead_inside_behind_a_proxy(proxy: Server) -> None:
    proxy.location = "http://169.254.169.254/latest"
    with pytest.raises(DataError, match="private network"):
        read("http://data.example/to/x.txt")


def read(url: str, allowed: bool = False) -> bytes:
    """Return the content of a URL."""
    storage = FileStore(FileStoreConfig(retries=0, allow_private_redirects=allowed), timeout=10.0)
    [file] = storage.expand([url])
    with storage.open(file.path) as opened:
        return opened.read(2**20)


@pytest.mark.parametrize("address", INNER)
def test_an_inner_address_is_known_in_every_form(address: str) -> None:
    assert is_inner(address)


@pytest.mark.parametrize("address", OUTER)
def test_an_address_of_the_internet_is_none(address: str) -> None:
    assert not is_inner(address)


@pytest.mark.parametrize("host", [*SPELLINGS, "127.0.0.2", "[::ffff:127.0.0.2]", "169.254.169.254"])
def test_a_redirect_from_the_internet_to_an_inner_address_is_refused(host: str, servers: tuple[Server, Server]) -> None:
    outer, inner = servers
    outer.location = inner.url("x.txt", host)
    with pytest.raises(DataError, match=r"private network.*data\.allow_private_redirects = true") as caught:
        read(outer.url("to/x.txt"))
    assert caught.value.file == outer.url("to/x.txt")
    assert not inner.seen


def test_a_redirect_by_the_other_header_that_clients_follow_is_refused_too(servers: tuple[Server, Server]) -> None:
    outer, inner = servers
    outer.location, outer.header = inner.url("x.txt"), "URI"
    with pytest.raises(DataError, match="private network"):
        read(outer.url("to/x.txt"))
    assert not inner.seen


def test_nor_does_a_checkpoint_behind_a_url_lead_there(servers: tuple[Server, Server]) -> None:
    outer, inner = servers
    outer.location = inner.url("manifest.json")
    with pytest.raises(CheckpointError, match=r"manifest\.json: not readable"):
        Folder(outer.url("to")).read_json("manifest.json")
    assert not inner.seen


def test_it_is_followed_where_the_user_allows_it(servers: tuple[Server, Server]) -> None:
    outer, inner = servers
    outer.location = inner.url("x.txt")
    assert read(outer.url("to/x.txt"), allowed=True) == TEXT


def test_an_inner_url_that_the_user_names_is_read_and_may_redirect_to_inner_ones(servers: tuple[Server, Server]) -> None:
    outer, inner = servers
    assert read(inner.url("x.txt")) == TEXT
    inner.location = inner.url("x.txt", "127.0.0.2")
    assert read(inner.url("to/x.txt")) == TEXT
    inner.location = "http://169.254.169.254/latest/meta-data"
    with pytest.raises(DataError, match=r"169\.254\.169\.254"):
        read(inner.url("to/x.txt"))
    inner.location = outer.url("to/y.txt")  # out, and from there back in
    outer.location = inner.url("x.txt")
    with pytest.raises(DataError, match="private network"):
        read(inner.url("to/x.txt"))


def test_a_name_that_has_another_address_the_second_time_is_refused(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, inner = servers
    outer.location = inner.url("x.txt", "0x7f.2")  # a name, as far as aiohttp knows

    async def innocent(host: str) -> list[str]:
        return ["8.8.8.8"]

    monkeypatch.setattr(redirects, "addresses", innocent)  # what is judged; the connection asks anew
    with pytest.raises(DataError, match="private network"):
        read(outer.url("to/x.txt"))
    assert not inner.seen


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x"])
def test_a_redirect_to_another_scheme_is_refused(location: str, servers: tuple[Server, Server]) -> None:
    outer, _ = servers
    outer.location = location
    with pytest.raises(DataError, match="redirects from http to"):
        read(outer.url("to/x.txt"), allowed=True)


def test_a_redirect_from_https_to_http_is_refused() -> None:
    with pytest.raises(RedirectError, match="from https to http:"):
        asyncio.run(refuse_redirect(URL("https://a.example/x"), URL("http://a.example/x"), private_redirects=True))
    asyncio.run(refuse_redirect(URL("http://8.8.8.8/x"), URL("https://8.8.4.4/x"), private_redirects=False))


def test_credentials_do_not_follow_a_redirect_to_another_server(servers: tuple[Server, Server]) -> None:
    outer, inner = servers
    outer.location = inner.url("x.txt")
    url = outer.url("to/x.txt?sig=5ecret").replace("//", "//anna:5ecret@", 1)
    assert read(url, allowed=True) == TEXT
    assert any("Authorization" in headers for headers in outer.seen)
    assert not any("Authorization" in headers or "5ecret" in str(headers) for headers in inner.seen)
