"""Access: more host names, and keys of the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from model.serving.access import Access, make_access, read_keys
from pipeline.errors import BadConfig, BadData, InputMissing
from tests.support.serving import NAME, Server, ask, exchange, serving

KEY, OTHER_KEY = "sk-inkstone-123", "another-key"


@pytest.fixture(scope="module")
def server(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("access") / "keys"
    keys.write_text(f"# of the team\n{KEY}\n\n{OTHER_KEY}  \n")
    with serving(trained, "--api-key-file", keys, "--server-name", "Host.Docker.Internal") as started:
        yield started


def status(server: Server, host: str) -> int:
    reply = exchange(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return int(reply.split()[1])


@pytest.mark.parametrize("host", ["host.docker.internal", "HOST.docker.internal:8000", "localhost:1", "127.0.0.1"])
def test_a_server_name_is_accepted_besides_loopback_names(server: Server, host: str) -> None:
    assert status(server, host) == 200


@pytest.mark.parametrize("host", ["evil.example", "x.host.docker.internal", "host.docker.internal.evil.example"])
def test_other_names_are_still_refused(server: Server, host: str) -> None:
    assert status(server, host) == 400


def test_a_public_server_with_a_name_accepts_that_name_only(trained: Path) -> None:
    with serving(trained, "--host", "0.0.0.0", "--server-name", "inkstone") as server:
        assert status(server, "inkstone:8000") == status(server, "127.0.0.1") == 200
        assert status(server, "evil.example") == 400


def test_openai_client_needs_a_key_of_the_file(server: Server) -> None:
    for key in (KEY, OTHER_KEY):
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        assert client.completions.create(model=NAME, prompt="话说", max_tokens=2).choices
        assert client.models.retrieve(NAME).id == NAME
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="sk-inkstone-124", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        stranger.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "话说"}])
    assert refused.value.code == "invalid_api_key"
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    "path", ["/v1/models", f"/v1/models/{NAME}", "/v1/completions", "/v1/chat/completions", "/v1/x"]
)
def test_every_route_of_the_api_needs_a_key(server: Server, path: str) -> None:
    for value in (None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"):
        reply = ask(server, path, headers={} if value is None else {"Authorization": value})
        assert reply.status == 401, value
        assert reply.headers["WWW-Authenticate"] == "Bearer"
        assert reply.error["type"] == "authentication_error"
    assert ask(server, path, headers={"Authorization": f"bearer {KEY}"}).status in (200, 404, 405)
    absolute = f"GET http://localhost{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert exchange(server, absolute.encode()).startswith(b"HTTP/1.1 401 ")


def test_the_page_and_health_need_no_key(server: Server) -> None:
    assert [ask(server, path).status for path in ("/", "/health", "/run")] == [200] * 3


def test_without_a_key_no_text_of_the_run_is_shown(server: Server) -> None:
    about = ask(server, "/run").json()
    assert about["curve"]["validation"]
    assert (about["sample"], about["beginnings"], about["has_report"]) == (None, [], False)
    assert ask(server, "/report").status == 404


def test_a_large_body_without_a_key_is_not_read(server: Server) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {900_000}\r\n\r\n".encode()
    assert exchange(server, head + b'{"prompt": "').split()[1] == b"401", "before the body has arrived"
    assert ask(server, "/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status == 200


def test_a_public_server_with_keys_warns_about_encryption(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    with serving(trained, "--host", "0.0.0.0", "--api-key-file", tmp_path / "keys") as server:
        assert "sends its keys unencrypted" in "".join(server.stderr_lines)
        assert KEY not in "".join(server.stderr_lines)


@pytest.mark.parametrize("name", ["", "http://a", "a:80", "a b", "-a", "a..b", "é", "a" * 254, "a/", "a\n"])
def test_names_that_are_no_host_names_are_refused(name: str) -> None:
    with pytest.raises(BadConfig, match="not a host name"):
        make_access(True, [name], None)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n# none\n", b"short\n", b"two words\n", b"\xff" * 20, KEY.encode() + b"\nx"]
)
def test_a_file_without_good_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(BadConfig, match="api-key-file") as error:
        read_keys(tmp_path / "keys")
    assert KEY not in str(error.value)


def test_a_file_that_is_missing_or_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputMissing, match="No such file"):
        read_keys(tmp_path / "none")
    with pytest.raises(BadData, match="a folder"):
        read_keys(tmp_path)
    (tmp_path / "large").write_bytes(b"x" * (65 << 10))
    with pytest.raises(BadData, match="more than"):
        read_keys(tmp_path / "large")


def test_a_server_without_keys_is_open() -> None:
    assert not Access().keys
    assert Access(local=False).has_host(b"any.example")
    assert not Access(local=True).has_host(b"any.example")
