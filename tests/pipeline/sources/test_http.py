"""HTTP policy: redirects, credentials, retries; cases 14, 15 and 23.

Case numbers are those of docs/design/reliability.md, section 2.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import requests

from pipeline.errors import BadConfig, InkstoneError, NotPermitted, ProtocolBroken, RemoteGone, TryAgain
from pipeline.runtime.progress import SilentProgress
from pipeline.sources import catalogue, http
from pipeline.sources.download import download
from pipeline.sources.http import BandwidthLimit, HTTPClient, Network, RemoteFile, Retry, RetryPolicy
from pipeline.sources.redirects import check_redirect
from pipeline.sources.small import fetch_small
from tests.support import bad_server, faults
from tests.support.bad_server import (
    HUB_FOLDER,
    Action,
    Server,
    cut_after,
    hub_headers,
    redirect,
    repeat_head,
    respond,
    wait_for,
)
from tests.support.faults import Command, Run, assert_survived

TOKEN = "hf_0123456789abcdef"
TEXT = "第一回　起\n话说天下大势，分久必合。\n" * 50
DATA = TEXT.encode()
EXPECTED = {"raw/a/a.txt": hashlib.sha256(DATA).hexdigest()}
QUICK = {"pipeline.sources.http._PAUSE": 0.01}


@pytest.fixture
def server() -> Iterator[Server]:
    with bad_server.running_server() as running:
        yield running


@pytest.fixture
def other_server() -> Iterator[Server]:
    with bad_server.running_server() as running:
        yield running


def command(root: Path, server: Server, *options: object, **environment: str) -> Command:
    server.files["/a.txt"] = DATA
    return Command(root, ("download", f"{server.url}/a.txt", *options), {"HF_TOKEN": TOKEN, **environment}, QUICK)


# Case 14: redirects


HUB = "https://huggingface.co/datasets/x/resolve/main/a.zst"


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Addresses of host names, separated by spaces; every other name resolves to a public address."""
    overrides: dict[str, str] = {}

    def resolve(host: str, port: object, *_: object, **__: object) -> list[tuple[object, ...]]:
        resolved = overrides.get(host, "18.64.1.1").split()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in resolved]

    monkeypatch.setattr("pipeline.sources.redirects.socket.getaddrinfo", resolve)
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return overrides


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize(
    ("url", "target"),
    [
        (HUB, "https://cdn-lfs.hf.co/blob?X-Amz-Signature=1"),
        (HUB, "https://cas-bridge.xethub.hf.co/blob"),
        (HUB, "https://huggingface.co/elsewhere"),
        (HUB, "https://HuggingFace.co:443/elsewhere"),
        ("https://github.com/a/raw/HEAD/a.txt", "https://raw.githubusercontent.com/a/a.txt"),
        ("https://www.example.org/a", "https://files.example.org/a"),
        ("http://127.0.0.1:8080/a", "http://127.0.0.1:8080/b"),
        ("http://mirror.lan/a", "http://mirror.lan:80/b"),
        ("https://mirror.lan:443/a", "https://mirror.lan/b"),
        ("https://mirror.lan/a", "https://mirror.lan./b"),
        ("http://mirror.lan/a", "https://mirror.lan/a"),
    ],
)
def test_redirect_to_a_related_host_is_followed(url: str, target: str) -> None:
    """Case 14."""
    check_redirect(url, target)


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://huggingface.co/a", "must be https"),
        ("http://cdn-lfs.hf.co/a", "must be https"),
        ("file:///etc/passwd", "must be https"),
        ("ftp://cdn-lfs.hf.co/a", "must be https"),
        ("https://evil.example/a", "another host"),
        ("https://evilhf.co/a", "another host"),
        ("https://hf.co.evil.example/a", "another host"),
        ("https://169.254.169.254/latest/meta-data", "another host"),
        ("https://127.0.0.1/a", "another host"),
        ("https://[::1]/a", "another host"),
        ("https://localhost/a", "another host"),
        ("https://0x7f000001/a", "another host"),
        ("https://user@evil.example/a", "another host"),
        ("https://hf.co@evil.example/a", "another host"),
    ],
)
def test_redirect_to_another_host_is_refused(target: str, reason: str) -> None:
    """Case 14."""
    with pytest.raises(ProtocolBroken, match=reason) as caught:
        check_redirect(HUB, target)
    assert caught.value.exit_code == 76
    assert "--allow-host" in caught.value.hint


PRIVATE = ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1%eth0"]


MIXED = ["18.64.1.1 10.0.0.1", "10.0.0.1 18.64.1.1", "::ffff:18.64.1.1 ::ffff:10.0.0.1", "2600:9000::1 fd00::1"]


@pytest.mark.parametrize("address", [*PRIVATE, "fd00::1", "::ffff:127.0.0.1", *MIXED])
def test_known_host_with_a_private_address_is_refused(addresses: dict[str, str], address: str) -> None:
    """Case 14."""
    addresses["cdn-lfs.hf.co"] = address
    with pytest.raises(ProtocolBroken, match="private address"):
        check_redirect(HUB, "https://cdn-lfs.hf.co/a")


@pytest.mark.parametrize("address", ["::ffff:18.64.1.1", "2600:9000::1", "18.64.1.1 2600:9000::1"])
def test_known_host_with_public_addresses_only_is_followed(addresses: dict[str, str], address: str) -> None:
    addresses["cdn-lfs.hf.co"] = address
    check_redirect(HUB, "https://cdn-lfs.hf.co/a")


def test_private_host_may_redirect_to_its_own_default_port_with_tls(addresses: dict[str, str]) -> None:
    addresses["mirror.lan"] = "10.0.0.1"
    check_redirect("http://mirror.lan:8080/a", "https://mirror.lan/a")
    with pytest.raises(ProtocolBroken, match="private address"):
        check_redirect("http://mirror.lan:8080/a", "https://mirror.lan:8443/a")


@pytest.mark.usefixtures("addresses")
def test_host_without_an_address_is_left_to_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise socket.gaierror

    monkeypatch.setattr("pipeline.sources.redirects.socket.getaddrinfo", fail)
    check_redirect(HUB, "https://cdn-lfs.hf.co/a")


@pytest.mark.usefixtures("addresses")
@pytest.mark.parametrize("allowed", ["evil.example", "evil.example:443", "Evil.Example"])
def test_redirect_to_an_allowed_host_is_followed(allowed: str) -> None:
    """Case 14."""
    check_redirect(HUB, "https://evil.example/a", (allowed,))
    with pytest.raises(ProtocolBroken):
        check_redirect(HUB, "https://evil.example:8443/a", ("evil.example:443",))
    with pytest.raises(ProtocolBroken):
        check_redirect(HUB, "file://evil.example/a", (allowed,))


def test_address_is_not_checked_behind_a_proxy(addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 14."""
    addresses["cdn-lfs.hf.co"] = "10.0.0.1"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.lan:3128")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    check_redirect(HUB, "https://cdn-lfs.hf.co/a")


def elsewhere(other_server: Server) -> str:
    """Return the URL of the other server by a host name other than 127.0.0.1."""
    return other_server.url.replace("127.0.0.1", "localhost")


REFUSED: dict[str, Callable[[Server], str]] = {
    "another port": lambda other_server: f"{other_server.url}/a.txt",
    "another host": lambda other_server: f"{elsewhere(other_server)}/a.txt",
    "link-local": lambda other_server: "http://169.254.169.254/latest/meta-data",
    "a file": lambda other_server: "file:///etc/passwd",
    "no URL": lambda other_server: "http://[::1/a.txt",
    "not even characters": lambda other_server: "http://\xff\xfe/a.txt",
    "two parsers": lambda other_server: f"http://127.0.0.1\\@{other_server.url[7:]}/a.txt",
    "another scheme": lambda other_server: f"gopher://{other_server.url[7:]}/a.txt",
    "in circles": lambda other_server: "/b.txt",
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_redirect_ends_the_command(
    root: Path, server: Server, other_server: Server, case: str, method: str
) -> None:
    """Case 14."""
    download_command, act = command(root, server), redirect(REFUSED[case](other_server))
    other_server.files["/a.txt"] = b"evil"
    server.scripts["/b.txt"], server.heads["/b.txt"] = [redirect("/a.txt")] * 9, [redirect("/a.txt")] * 9
    (server.scripts if method == "GET" else server.heads)["/a.txt"] = [act] * 9
    first = download_command.run_forked()
    assert len(server.log) <= 7
    assert other_server.log == []
    server.scripts.clear()
    server.heads.clear()
    assert_survived(root, download_command.run_forked, EXPECTED, [first], code=76, names=["/a.txt"], secrets=[TOKEN])


def test_five_redirects_are_followed_and_a_sixth_is_refused(root: Path, server: Server) -> None:
    """Case 14."""
    download_command = command(root, server)
    server.files["/5"] = DATA
    for hop in range(5):
        path = "/a.txt" if hop == 0 else f"/{hop}"
        server.scripts[path], server.heads[path] = [redirect(f"/{hop + 1}")] * 2, [redirect(f"/{hop + 1}")] * 2
    assert download_command.run_forked().code == 0
    server.heads["/5"] = [redirect("/6")]
    first = replace(download_command, root=root.with_name("other")).run_forked()
    faults.assert_one_error(first, 76, ["/a.txt", "5 redirects"])


def test_token_is_sent_to_the_endpoint_only(root: Path, server: Server, other_server: Server) -> None:
    """Case 14."""
    other_server.files["/cdn"] = DATA
    link = redirect(
        f"{elsewhere(other_server)}/cdn?sig=secret", **{k.replace("-", "_"): v for k, v in hub_headers(DATA).items()}
    )
    path = f"{HUB_FOLDER}/val.jsonl.zst"
    other_server.scripts["/cdn?sig=secret"] = [redirect("/cdn")] * 2
    server.scripts[path], server.heads[path] = [redirect(f"{path}.moved")], [redirect(f"{path}.moved")]
    server.scripts[f"{path}.moved"], server.heads[f"{path}.moved"] = [link], [link]
    environment = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
    run = Command(root, ("download", "pile", "--shards", "val", "--allow-host", "localhost"), environment).run_forked()
    faults.assert_one_error(run, 75, ["data that is not zstd"])  # only the requests matter here
    assert {request.headers.get("Authorization") for request in server.log} == {f"Bearer {TOKEN}"}
    assert len(server.log) == 4
    assert [request.path for request in other_server.log] == ["/cdn?sig=secret", "/cdn"]
    assert not any({"Authorization", "Cookie"} & request.headers.keys() for request in other_server.log)
    faults.assert_silent(run.out + run.err, [TOKEN, "secret"])


def test_password_of_a_url_is_not_sent_to_another_host(root: Path, server: Server, other_server: Server) -> None:
    """Case 14."""
    command(root, server)
    other_server.files["/b.txt"] = DATA
    to = [redirect(f"{elsewhere(other_server)}/b.txt")]
    server.scripts["/a.txt"], server.heads["/a.txt"] = list(to), list(to)
    url = server.url.replace("http://", "http://me:se%40cret@") + "/a.txt"
    run = Command(root, ("download", url, "--allow-host", "localhost"), {}, QUICK).run_forked()
    assert run.code == 0
    assert all(request.headers["Authorization"].startswith("Basic ") for request in server.log)
    assert [request.headers.get("Authorization") for request in other_server.log] == [None, None]
    for path in root.rglob("*"):
        if path.is_file():
            faults.assert_silent(path.read_text(encoding="utf-8"), ["se%40cret", "se@cret", "me:"])


# Case 15: credentials of the environment


@pytest.mark.parametrize(
    ("act", "code"), [(respond(200, DATA), 0), (respond(503), 75), (respond(401), 77)], ids=["well", "busy", "refused"]
)
def test_credentials_of_the_environment_are_neither_sent_nor_shown(
    root: Path, server: Server, act: Action, code: int
) -> None:
    """Case 15."""
    home = root.parent / "home"
    home.mkdir(parents=True)
    (home / ".netrc").write_text("default login me password netrcsecret\n")
    (home / ".netrc").chmod(0o600)
    download_command = command(
        root, server, "--log-json", root / "log.jsonl", HOME=str(home), NETRC=str(home / ".netrc")
    )
    server.scripts["/a.txt"] = [act] * 9
    first = download_command.run_forked()
    server.scripts.clear()
    assert first.code == code
    failed: dict[str, Any] = {"code": code, "names": ["/a.txt"]} if code else {}
    assert_survived(root, download_command.run_forked, EXPECTED, [first], secrets=[TOKEN, "netrcsecret"], **failed)
    assert (root / "log.jsonl").stat().st_size > 0
    assert not any("Authorization" in request.headers for request in server.log)


def test_proxy_password_is_sent_to_the_proxy_only(root: Path, server: Server, other_server: Server) -> None:
    """Case 15: `other_server` is the proxy, which is sent complete URLs."""
    proxy = other_server.url.replace("http://", "http://me:proxysecret@")
    url = "http://files.invalid/a.txt"
    environment = {"http_proxy": proxy, "HTTP_PROXY": proxy, "NO_PROXY": "", "no_proxy": "", "HF_TOKEN": TOKEN}
    download_command = Command(root, ("download", url, "--log-json", root / "log.jsonl"), environment, QUICK)
    other_server.files[url] = DATA
    other_server.scripts[url] = [cut_after(10), *[respond(503)] * 9]
    first = download_command.run()
    other_server.scripts.clear()
    run = assert_survived(
        root, download_command.run, EXPECTED, [first], code=75, names=["a.txt"], secrets=[TOKEN, "proxysecret"]
    )
    assert run.code == 0
    assert all(request.headers["Proxy-Authorization"].startswith("Basic ") for request in other_server.log)
    assert not any("Authorization" in request.headers for request in other_server.log)


@pytest.mark.parametrize(
    "proxy", ["http://me:proxysecret@127.0.0.1:1", "me:proxysecret@127.0.0.1:1", "foo://me:proxysecret@127.0.0.1:1"]
)
def test_error_of_a_proxy_does_not_show_its_password(root: Path, proxy: str) -> None:
    """Case 15."""
    environment = {"HTTPS_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
    download_command = Command(root, ("download", "https://files.invalid/a.txt?sig=secret"), environment, QUICK)
    run = download_command.run()
    assert run.code in (75, 76)
    faults.assert_one_error(run, run.code, ["files.invalid"])
    faults.assert_silent(run.out + run.err, ["proxysecret", "secret"])


def test_socks_proxy_is_used_once_its_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = "Socks5h://127.0.0.1:1"
    monkeypatch.setenv("http_proxy", proxy)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    packages: dict[str, object] = {}
    monkeypatch.setattr("importlib.util.find_spec", packages.get)
    with pytest.raises(BadConfig, match="PySocks"):
        http._proxies("http://files.invalid/a.txt")
    packages["socks"] = "its specification"
    assert http._proxies("http://files.invalid/a.txt")["http"] == proxy


@pytest.mark.parametrize("token", ["hf_secret\n", "hf_sécret", "hf_\x01secret"])
def test_invalid_token_is_not_shown(root: Path, server: Server, token: str) -> None:
    """Case 15."""
    server.scripts[f"{HUB_FOLDER}/val.jsonl.zst"] = [respond(401)] * 9
    source = catalogue.resolve_source("pile", shards="val", mirror=server.url, environment={"HF_TOKEN": token})
    with pytest.raises(InkstoneError) as caught:
        download(root, source, SilentProgress())
    assert "cret" not in str(caught.value)


def two_lengths(handler: bad_server.Handler) -> None:
    handler.send_response(200)
    for length in ("5", "100"):
        handler.send_header("Content-Length", length)
    handler.end_headers()
    handler.close_connection = True


@pytest.mark.parametrize("method", ["heads", "scripts"])
def test_two_lengths_in_a_response_are_not_blamed_on_the_token(root: Path, server: Server, method: str) -> None:
    server.files["/b.txt"] = DATA
    getattr(server, method)["/b.txt"] = [two_lengths]
    source = catalogue.resolve_source(f"{server.url}/b.txt", environment={"HF_TOKEN": TOKEN})
    with pytest.raises(ProtocolBroken, match=r"/b.txt: the server sent an invalid header: Content-Length .*5, 100"):
        download(root, source, SilentProgress())


# Case 23: no network


@pytest.fixture
def cached(root: Path, server: Server) -> Command:
    """A command that checks a cached file upstream."""
    cached_command = replace(command(root, server, "--update-lock"), constants={})
    assert cached_command.run_forked().code == 0
    return cached_command


def assert_survived_offline(root: Path, first: Run, names: list[str]) -> None:
    assert first.seconds < 30
    faults.assert_one_error(first, 75, names)
    assert faults.published(root) == EXPECTED
    cleaned = Command(root, ("clean", "a", "--unit", "paragraph")).run_forked()
    assert cleaned.code == 0, cleaned.err
    faults.assert_published(root, (faults.published(root),), EXPECTED)
    assert faults.leftovers(root) == []


def test_old_file_is_kept_without_a_network(root: Path, server: Server, cached: Command) -> None:
    """Case 23."""
    first = replace(cached, before=faults.offline()).run()
    assert_survived_offline(root, first, ["/a.txt", "no connection"])
    assert_survived(root, cached.run_forked, faults.published(root), [first], code=75, old=EXPECTED, secrets=[TOKEN])


def test_unknown_host_raises_try_again(root: Path, server: Server, cached: Command) -> None:
    """Case 23."""
    arguments = ("download", "http://files.invalid/a.txt")
    first = replace(cached, arguments=arguments, constants=QUICK).run()
    assert_survived_offline(root, first, ["http://files.invalid/a.txt", "no connection"])


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server with a self-signed certificate, and the path of that certificate."""
    faults.require("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(
        [*openssl, "-days", "2", "-keyout", key, "-out", certificate, *name], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with bad_server.running_server() as server:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.files["/a.txt"] = DATA
        yield f"https://127.0.0.1:{server.server_port}", certificate


def test_untrusted_certificate_raises_try_again(root: Path, cached: Command, untrusted: tuple[str, Path]) -> None:
    """Case 23."""
    url, certificate = untrusted
    download_command = replace(cached, arguments=("download", f"{url}/a.txt"))
    first = download_command.run()
    assert_survived_offline(root, first, [f"{url}/a.txt", "no trusted TLS connection"])
    trusting = replace(download_command, environment={"REQUESTS_CA_BUNDLE": str(certificate)})
    assert trusting.run().code == 0


def test_unresponsive_network_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 23: each connection times out after ten seconds of a simulated clock."""
    clock = 0.0

    def swallowed(*_: object, timeout: tuple[float, float], **__: object) -> requests.Response:
        nonlocal clock
        clock += timeout[0]
        raise requests.exceptions.ConnectTimeout

    monkeypatch.setattr(requests.Session, "request", swallowed)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(Network, "sleep", lambda *_: None)
    with HTTPClient(Network()) as client, pytest.raises(TryAgain, match="no connection"):
        client.describe("https://files.invalid/a.txt")
    assert 10 < clock < 30


# Case 12: waits before the first byte of a body


def wait_silently(handler: bad_server.Handler) -> None:
    handler.server.stopping.wait()


ENDLESS = pytest.mark.parametrize(
    "act",
    [wait_silently, repeat_head(b"HTTP/1.1 200 OK\r\nX: "), repeat_head(b"HTTP/1.1 100 Continue\r\n\r\n", 0.001)],
    ids=["silent", "dripping headers", "100 Continue"],
)


@contextmanager
def left_in_time(match: str) -> Iterator[None]:
    start = time.monotonic()
    with pytest.raises(TryAgain, match=match):
        yield
    assert time.monotonic() - start < 3


def describe(url: str, network: Network) -> None:
    with HTTPClient(network) as client:
        client.describe(url)


@ENDLESS
def test_headers_without_end_are_left_at_the_deadline(server: Server, act: Action) -> None:
    server.heads["/a"] = [act]
    with left_in_time("no time left"):
        describe(f"{server.url}/a", Network(deadline=time.monotonic() + 0.3))


@ENDLESS
def test_headers_without_end_are_left_on_a_stop(server: Server, act: Action) -> None:
    server.heads["/a"] = [act]
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with left_in_time("stopped by a signal"):
        describe(f"{server.url}/a", Network(stop=stop))


@ENDLESS
def test_headers_without_end_are_left_after_the_timeouts(server: Server, act: Action) -> None:
    server.heads["/a"] = [act]
    before = threading.enumerate()
    with left_in_time("no answer for too long"):
        describe(f"{server.url}/a", Network(attempts=1, connect_timeout=0.2, read_timeout=0.2))
    wait_for(lambda: not any(thread.name == "request" for thread in set(threading.enumerate()) - set(before)))


def test_slow_name_server_is_left_on_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, answer = threading.Event(), threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer.wait(20))
    threading.Timer(0.2, stop.set).start()
    with left_in_time("stopped by a signal"):
        describe("http://files.invalid/a", Network(stop=stop))
    answer.set()


def test_small_response_without_length_is_not_complete_after_a_stop(server: Server) -> None:
    def stall_without_length(handler: bad_server.Handler) -> None:
        handler.begin(200, {"Connection": "close"})
        handler.send(b"half")
        handler.server.stopping.wait()

    server.scripts["/a"] = [stall_without_length]
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with left_in_time("stopped by a signal"):
        fetch_small(f"{server.url}/a", Network(stop=stop))


def test_monitor_does_not_delay_the_end_of_a_stopped_command(server: Server) -> None:
    server.answers["/ping/fail"] = repeat_head(b"HTTP/1.1 200 OK\r\nX: ")
    stop, start = threading.Event(), time.monotonic()
    stop.set()
    http.ping(f"{server.url}/ping/fail", stop)
    assert time.monotonic() - start < 2
    assert server.log


def test_date_of_a_silent_server_is_left_on_a_stop(server: Server) -> None:
    server.answers["/"] = wait_silently
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with left_in_time("stopped by a signal"):
        http.server_date(f"{server.url}/", stop)


# Functions


def test_hub_metadata_is_read_from_the_redirect(server: Server) -> None:
    commit, path = "0123456789" * 4, "/datasets/x/resolve/main/a.zst"
    headers = {**hub_headers(DATA), "X-Repo-Commit": commit, "Location": "https://cdn-lfs.hf.co/blob?sig=1"}
    server.heads[path] = [lambda handler: handler.answer(302, b"", headers)]
    with HTTPClient(Network()) as client:
        remote = client.describe(server.url + path)
    sha256 = hashlib.sha256(DATA).hexdigest()
    assert remote == RemoteFile(f"{server.url}/datasets/x/resolve/{commit}/a.zst", len(DATA), sha256, "", commit)


@pytest.mark.parametrize(
    ("value", "size"), [("12", 12), ("", None), ("²", None), ("-1", None), ("1e3", None), ("9" * 5000, None)]
)
def test_invalid_size_header_is_ignored(server: Server, value: str, size: int | None) -> None:
    server.files["/a"] = b""
    server.heads["/a"] = [respond(200, X_Linked_Size=value, Content_Length="")]
    with HTTPClient(Network()) as client:
        assert client.describe(f"{server.url}/a").size == size


@pytest.mark.parametrize(("etag", "strong"), [('"a"', '"a"'), ('W/"a"', ""), ("a", ""), ("Fri, 20 Nov 2026", "")])
def test_only_a_strong_etag_is_used(etag: str, strong: str) -> None:
    assert RemoteFile("", etag=etag).strong_etag == strong


@pytest.mark.parametrize(
    ("value", "minimum", "maximum"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("99999", 300, 300),
        ("9" * 5000, 0, 0),
        ("²", 0, 0),
        ("soon", 0, 0),
        ("", 0, 0),
        ("Mon, 01 Jan 0001 00:00:00 -0000", 0, 0),
    ],
)
def test_retry_after_seconds_are_limited(value: str, minimum: float, maximum: float) -> None:
    assert minimum <= http._retry_after(value) <= maximum


@pytest.mark.parametrize(("ahead", "minimum", "maximum"), [(60, 50, 60), (9999, 300, 300), (-60, 0, 0)])
def test_retry_after_may_be_a_date(ahead: float, minimum: float, maximum: float) -> None:
    assert minimum <= http._retry_after(formatdate(time.time() + ahead, usegmt=True)) <= maximum


def test_pauses_grow_until_retries_are_exhausted(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Network, "sleep", lambda network, seconds, where: waits.append(seconds))
    retries = RetryPolicy(Network(), "http://me:secret@files.invalid/a.txt?sig=secret")
    for _ in range(http.ATTEMPTS - 1):
        retries.wait(Retry("busy"))
    with pytest.raises(TryAgain, match=r"^http://files.invalid/a.txt\?…\w+: busy") as caught:
        retries.wait(Retry("busy"))
    assert len(waits) == http.ATTEMPTS - 1
    assert waits == sorted(waits)
    assert "secret" not in str(caught.value)


def test_server_decides_how_long_the_pause_is_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Network, "sleep", lambda network, seconds, where: waits.append(seconds))
    retries = RetryPolicy(Network(), "http://files.invalid/a.txt")
    for error in (Retry("busy", 3.0), Retry("busy", 0.1), requests.exceptions.ReadTimeout()):
        retries.wait(error)
    assert waits[0] == 3.0
    assert 0.4 <= waits[1] <= 0.8 <= waits[2] <= 1.6


def test_problem_of_a_retry_is_shown_without_its_wait() -> None:
    with pytest.raises(TryAgain, match=r"a\.txt: busy \(check"):
        RetryPolicy(Network(attempts=1), "http://files.invalid/a.txt").wait(Retry("busy", 3.0))


def test_stalled_response_is_retried_once_after_a_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Network, "sleep", lambda *_: None)
    monkeypatch.setattr(http, "_MAX_IDLE", -1.0)
    retries = RetryPolicy(Network(), "http://files.invalid/a.txt")
    retries.wait(http.Stalled("hardly anything came"))
    with pytest.raises(TryAgain):
        retries.wait(http.Stalled("hardly anything came"))
    with pytest.raises(TryAgain):
        RetryPolicy(Network(), "http://files.invalid/a.txt").wait(requests.exceptions.ConnectTimeout())


def test_text_of_a_connection_error_is_not_shown() -> None:
    """It contains the requested path with its signature."""
    error = requests.exceptions.ConnectionError("Max retries exceeded with url: /thread/read?X-Amz-Signature=secret")
    retries = RetryPolicy(Network(attempts=1), "http://files.invalid/a.txt")
    with pytest.raises(TryAgain, match=r"a\.txt: no connection to files\.invalid") as caught:
        retries.wait(error)
    assert "secret" not in str(caught.value)


def test_bandwidth_limit_is_shared() -> None:
    bandwidth = BandwidthLimit(1000.0)
    assert bandwidth.chunk_size == 250
    waits = [bandwidth.delay(100) for _ in range(10)]
    assert waits == sorted(waits)
    assert 0.9 < waits[-1] <= 1.0


def test_stopped_command_stops_waiting() -> None:
    stop = threading.Event()
    threading.Timer(0.05, stop.set).start()
    start = time.monotonic()
    with pytest.raises(TryAgain, match=r"^a\.txt: stopped by a signal"):
        Network(stop=stop).sleep(20, "a.txt")
    assert time.monotonic() - start < 5


def test_wait_beyond_the_deadline_is_not_started() -> None:
    start = time.monotonic()
    with pytest.raises(TryAgain, match=r"^a\.txt: no time left"):
        Network(deadline=time.monotonic() + 5).sleep(20, "a.txt")
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("status", "content_type", "name", "is_refused"),
    [
        (200, "text/html", "a.txt", True),
        (200, "Text/HTML; charset=utf-8", "a.zst?page=b.html", True),
        (200, "text/html", "A.HTML?x=1", False),
        (200, "text/html", "a.htm", False),
        (200, "text/plain", "a.txt", False),
        (200, "", "a.txt", False),
        (404, "text/html", "a.txt", False),
    ],
)
def test_web_page_in_place_of_a_file_is_refused(status: int, content_type: str, name: str, is_refused: bool) -> None:
    response = requests.Response()
    response.status_code = status
    response.headers.update({"Content-Type": content_type} if content_type else {})
    with pytest.raises(TryAgain, match="the server sent a web page") if is_refused else nullcontext():
        http.raise_if_page(f"http://files.invalid/{name}", response)


@pytest.mark.parametrize("status", [404, 410])
def test_missing_remote_file_raises_remote_gone_without_retry(server: Server, status: int) -> None:
    server.heads["/a"] = [respond(status)]
    with HTTPClient(Network()) as client, pytest.raises(RemoteGone, match=str(status)):
        client.describe(f"{server.url}/a")
    assert len(server.log) == 1


def test_errors_name_the_file_without_secrets() -> None:
    url = "https://me:secret@files.invalid/a.txt?sig=secret"
    errors: list[InkstoneError] = [http.not_found(url, 404), http.forbidden(url, 403), http.wrong_content(url, "x")]
    assert [error.exit_code for error in errors] == [69, NotPermitted.exit_code, 75]
    for error in errors:
        assert error.message.startswith("https://files.invalid/a.txt?…")
        assert "secret" not in str(error)


def test_ping_sends_one_request_and_ignores_failures(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login me password netrcsecret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.scripts["/ping/start"] = [redirect("/elsewhere")]
    http.ping(f"{server.url}/ping/start", threading.Event())
    http.ping("http://127.0.0.1:1/ping", threading.Event())
    http.ping("no URL", threading.Event())
    assert [(request.path, request.headers.get("Authorization")) for request in server.log] == [("/ping/start", None)]


@pytest.mark.parametrize(("is_stopped", "seconds"), [(False, 5.0), (True, 0.5)])
def test_ping_waits_five_seconds_at_most(monkeypatch: pytest.MonkeyPatch, is_stopped: bool, seconds: float) -> None:
    limits: list[Network] = []
    monkeypatch.setattr(http, "_probe", lambda method, url, network: limits.append(network))
    stop = threading.Event()
    if is_stopped:
        stop.set()
    http.ping("http://monitor.invalid/ping", stop)
    assert [sum(network.timeout()) for network in limits] == [seconds]


def test_statuses_that_are_worth_a_retry() -> None:
    retried = set()
    for status in range(100, 600):
        response = requests.Response()
        response.status_code = status
        try:
            http.raise_if_busy(response)
        except Retry:
            retried.add(status)
    assert retried == {408, 425, 429, 500, 502, 503, 504}


def test_stopped_command_asks_for_nothing(server: Server) -> None:
    stop = threading.Event()
    stop.set()
    with HTTPClient(Network(stop=stop)) as client, pytest.raises(TryAgain, match="stopped by a signal"):
        client.describe(f"{server.url}/a")
    assert server.log == []


@pytest.mark.parametrize(("path", "has_terms"), [("/datasets/x/a", True), ("/a", False)])
def test_terms_are_those_of_datasets(path: str, has_terms: bool) -> None:
    hint = http.forbidden(f"https://hub.invalid{path}", 403).hint
    assert hint.startswith("accept the terms of the dataset" if has_terms else "set HF_TOKEN")


def test_server_date_returns_the_date_header(server: Server) -> None:
    assert "GMT" in http.server_date(f"{server.url}/", threading.Event())
    with pytest.raises(TryAgain, match="no connection to 127"):
        http.server_date("http://127.0.0.1:1/", threading.Event())


def test_date_of_a_server_without_a_clock_is_empty() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert http.server_date(f"http://127.0.0.1:{listener.getsockname()[1]}/", threading.Event()) == ""
        thread.join()
