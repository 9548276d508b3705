"""URLs as fsspec file systems, whose http redirects lead to no address that their author could not have named.

A server may answer with another URL. Followed blindly, that makes this machine fetch from its own network for whoever
runs the server: the metadata of a cloud machine (169.254.169.254), a service on this host. So a redirect from a public
address to one that is private, of this host or link-local is refused, as is one from https to http. URLs that the user
names may be private, and a private server may redirect to others of its network, as those of clusters do.

Names are judged by their addresses, before the redirect is followed and again when it connects, so that a name server
that gives another answer the second time changes nothing.

A proxy that the environment names (http_proxy, https_proxy; read where fsspec's client has `trust_env`) may be private;
it looks up names that this host does not know. All of this holds for http and https; drivers of other stores follow
redirects as their own libraries do.
"""

import asyncio
import socket
from functools import partial
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from fsspec.core import url_to_fs
from typing_extensions import override

NAT64 = IPv6Network("64:ff9b::/96")


class RedirectError(OSError):
    """A redirect is not followed."""


def file_system(url: str, private_redirects: bool = False) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL, and what the path is called there.

    Args:
        url: Path or URL; may be a chain (`simplecache::https://...`).
        private_redirects: Whether a public server may redirect into a private network.

    Raises:
        ImportError: The driver of the URL is not installed.
        ValueError: There is no such driver.
    """
    client = _lenient_client if private_redirects else _strict_client
    return url_to_fs(url, **{name: {"get_client": client} for name in ("http", "https") if f"{name}://" in url})  # type: ignore[no-any-return]


def is_inner(address: str) -> bool:
    """Tell whether an IP address, in whatever form, is of this host or of a network that is not the internet."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or (ip_address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip)
    return not ip.is_global or ip.is_multicast


async def addresses(host: str) -> list[str]:
    """Return the IP addresses of a host; of a number (0x7f.1, 2130706433) what connecting would make of it.

    Raises:
        OSError: It has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def refuse_redirect(begin: Any, end: Any, private_redirects: bool, proxied: bool = False) -> None:
    """Refuse a redirect from one yarl.URL to another.

    Args:
        begin: Its server.
        end: Where it leads.
        private_redirects: Whether it may lead into a private network.
        proxied: Whether a proxy looks up what this host cannot.

    Raises:
        OSError: The end has no address, and no proxy could know one.
        RedirectError: It leaves https, or http altogether, or leads from a public address to one that is not.
    """
    if end.scheme not in ("http", "https") or (begin.scheme, end.scheme) == ("https", "http") or not end.host:
        raise RedirectError(f"{begin.host} redirects from {begin.scheme} to {end}; an https URL may follow, or http after http")
    if private_redirects:
        return
    try:
        inner = [address for address in await addresses(end.host) if is_inner(address)]
    except socket.gaierror:
        if proxied:
            return
        raise
    link_local = any(ip_address(address.partition("%")[0]).is_link_local for address in inner)
    if inner and (link_local or not await is_inside(begin.host)):
        raise RedirectError(_refused(begin.host, end.host, inner[0]))


async def is_inside(host: str) -> bool:
    """Tell whether all addresses of a host are inner ones; one that has none is taken for outside."""
    try:
        return all(map(is_inner, await addresses(host)))
    except OSError:
        return False


def _refused(begin: str, end: str, address: str) -> str:
    there = end if end == address else f"{end} ({address})"
    return (
        f"{begin} redirects to {there}, an address of a private network; name that URL yourself, or set "
        "data.allow_private_redirects = true"
    )


async def _client(private_redirects: bool, **options: Any) -> Any:
    """Return the aiohttp session of an http file system."""
    import aiohttp  # an optional driver of fsspec's

    proxies = {urlsplit(url).hostname for kind, url in getproxies().items() if kind in ("http", "https")}
    proxied = bool(proxies) and bool(options.get("trust_env"))
    # Hosts that may be private: the user names them, or one of them does.
    trusted: set[str | None] = set(proxies) if proxied else set()

    class Resolver(aiohttp.ThreadedResolver):
        @override
        async def resolve(self, host: str, *arguments: Any, **more: Any) -> Any:
            found = await super().resolve(host, *arguments, **more)
            inner = [each["host"] for each in found if is_inner(each["host"])]
            if inner and host not in trusted and not private_redirects:
                raise RedirectError(_refused("a server", host, inner[0]))
            return found

    async def begins(session: Any, context: Any, request: Any) -> None:
        trusted.add(request.url.raw_host)

    async def redirects(session: Any, context: Any, answer: Any) -> None:
        begin, headers = answer.response.url, answer.response.headers
        end = begin.join(type(begin)(headers.get("Location") or headers.get("URI") or ""))  # as aiohttp reads them
        await refuse_redirect(begin, end, private_redirects, proxied)
        if begin.raw_host in trusted and await is_inside(begin.host):
            trusted.add(end.raw_host)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(begins)
    trace.on_request_redirect.append(redirects)
    options.setdefault("connector", aiohttp.TCPConnector(resolver=Resolver()))
    return aiohttp.ClientSession(trace_configs=[trace], **options)


_strict_client = partial(_client, False)
_lenient_client = partial(_client, True)
