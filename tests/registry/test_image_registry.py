"""The registry client against a real registry, and a token service that runs here."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cluster
import httpx
import launch
import oci
import pytest
import registry as fetched

from images import errors, reference, registry, resolve

pytestmark = pytest.mark.registry

ABSENT = "sha256:" + "0" * 64
# Made with crypt(3), four rounds; the password is `hunter2`.
HTPASSWD = "tester:$2b$04$CIgCcgy1iPp9ZdRQAwjhFOs2coO3EJg98YXgTde8AVOfgtmx3wvwa\n"
LOGIN = ("tester", "hunter2")


def asking(work: Callable[[registry.Registry], Awaitable[Any]], **settings: Any) -> Any:
    async def run() -> Any:
        async with registry.Registry(**settings) as asked:
            return await work(asked)

    return asyncio.run(run())


def digest(image: str, **settings: Any) -> str:
    return str(asking(lambda asked: asked.digest(reference.parse(image)), **settings))


def tags(image: str, **settings: Any) -> tuple[str, ...]:
    return tuple(asking(lambda asked: asked.tags(reference.parse(image)), **settings))


def variants(image: str, **settings: Any) -> resolve.Resolved:
    answer = asking(lambda asked: resolve.Resolver(asked).variants(image), **settings)
    assert isinstance(answer, resolve.Resolved)
    return answer


# --- What is there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_a_tags_digest_is_the_one_that_was_pushed(oci_registry: oci.OciRegistry, media: oci.Media) -> None:
    pushed = oci_registry.push(f"client/{media}", "v1", media=media)
    assert digest(f"{oci_registry.host}/client/{media}:v1") == pushed
    assert digest(f"{oci_registry.host}/client/{media}@{pushed}") == pushed


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_the_digest_of_an_index_is_its_own(oci_registry: oci.OciRegistry, media: oci.Media) -> None:
    repository = f"client/index-{media}"
    images = [oci_registry.push(repository, None, media=media, platform=f"linux/{arch}") for arch in ("amd64", "arm64")]
    index = oci_registry.push_index(repository, "latest", images, media)
    assert digest(f"{oci_registry.host}/{repository}") == index


def test_tags_come_whole_and_sorted(oci_registry: oci.OciRegistry) -> None:
    names = ["v1-nvidia", "v1-amd", "nvidia-base", "v10", "V1"]
    for name in names:
        oci_registry.push("client/tags", name)
    assert tags(f"{oci_registry.host}/client/tags") == tuple(sorted(names))


def test_localhost_by_name_is_spoken_to_as_well(oci_registry: oci.OciRegistry) -> None:
    pushed = oci_registry.push("client/by-name", "v1")
    assert digest(f"localhost:{oci_registry.port}/client/by-name:v1") == pushed


@pytest.mark.parametrize("image", ["client/none:v1", "client/tags:none", f"client/tags@{ABSENT}"])
def test_what_is_not_there_is_not_found(oci_registry: oci.OciRegistry, image: str) -> None:
    oci_registry.push("client/tags", "some")
    with pytest.raises(errors.NotFound, match=oci_registry.host):
        digest(f"{oci_registry.host}/{image}")


def test_a_repository_that_is_not_there_is_not_found(oci_registry: oci.OciRegistry) -> None:
    with pytest.raises(errors.NotFound, match="NAME_UNKNOWN"):
        tags(f"{oci_registry.host}/client/never")


# --- Outages --------------------------------------------------------------------------------------------------------


def test_a_registry_that_is_down_is_unreachable_within_the_deadline() -> None:
    start = time.monotonic()
    with pytest.raises(errors.RegistryUnreachable, match="ConnectError") as caught:
        digest(f"127.0.0.1:{cluster.free_port()}/app:v1", deadline_seconds=0.5)
    assert time.monotonic() - start < 1
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


def test_a_registry_that_never_answers_is_unreachable_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(errors.RegistryUnreachable, match=r"no answer within 0\.3 s"):
            tags(f"127.0.0.1:{silent.getsockname()[1]}/app", deadline_seconds=0.3)
        assert 0.25 < time.monotonic() - start < 1


def test_a_registry_that_comes_back_is_reached_again(oci_registry: oci.OciRegistry) -> None:
    pushed = oci_registry.push("client/outage", "v1-nvidia")
    image = f"{oci_registry.host}/client/outage:v1"

    async def work(asked: registry.Registry) -> resolve.Resolved:
        now = [0.0]
        resolver = resolve.Resolver(asked, now=lambda: now[0])
        await resolver.variants(image)
        oci_registry.stop()
        try:
            assert (await resolver.variants(image)).by_vendor  # kept
            now[0] = 61
            with pytest.raises(errors.RegistryUnreachable):
                await resolver.variants(image)
        finally:
            oci_registry.start()
        now[0] = 72
        return await resolver.variants(image)

    found = asking(work, deadline_seconds=0.5)
    assert found.by_vendor["nvidia"].image == f"{oci_registry.host}/client/outage@{pushed}"


# --- From a logical image to digests --------------------------------------------------------------------------------


def test_one_name_stands_for_each_vendors_image(oci_registry: oci.OciRegistry) -> None:
    name = f"{oci_registry.host}/team/app"
    nvidia = oci_registry.push("team/app", "v1-nvidia", {"CUDA_VERSION": "12.4.1"})
    amd = oci_registry.push("team/app", "v1-rocm6.2", {"ROCM_VERSION": "6.2"}, "docker")
    oci_registry.push("team/app", "v10-nvidia")
    oci_registry.push("team/app", f"sha256-{'0' * 64}.sig")
    found = variants(f"{name}:v1")
    assert {vendor: pinned.image for vendor, pinned in found.by_vendor.items()} == {
        "nvidia": f"{name}@{nvidia}",
        "amd": f"{name}@{amd}",
    }
    assert variants(f"{name}:v1-rocm6.2").by_vendor.keys() == {"amd"}
    with pytest.raises(errors.NoVariant, match=f"push {name}:v2-nvidia or {name}:v2-amd"):
        variants(f"{name}:v2")


def test_several_variants_of_one_vendor_come_each_by_its_digest(oci_registry: oci.OciRegistry) -> None:
    name = f"{oci_registry.host}/team/targets"
    tags = ["v1-rocm6.2-gfx90a", "v1-rocm6.2-gfx942", "v1-sm86", "v1-sm90", "v2-sm90", "v2-nvidia"]
    pushed = {tag: f"{name}@{oci_registry.push('team/targets', tag, {'BUILT': tag})}" for tag in tags}
    options = variants(f"{name}:v1").options
    for vendor, target, tag in [
        ("amd", "gfx90a", "v1-rocm6.2-gfx90a"),
        ("amd", "gfx942", "v1-rocm6.2-gfx942"),
        ("nvidia", "8.6", "v1-sm86"),
        ("nvidia", "8.9", "v1-sm86"),
        ("nvidia", "9.0", "v1-sm90"),
    ]:
        able = [pinned for name, each in options.items() if name == vendor for pinned in each if pinned.runs_on(target)]
        assert [(pinned.tag, pinned.image) for pinned in able] == [(tag, pushed[tag])]
    (neutral,) = variants(f"{name}:v2").options["nvidia"]
    assert neutral.image == pushed["v2-nvidia"]


def test_latest_is_one_form_for_all_vendors(oci_registry: oci.OciRegistry) -> None:
    name = f"{oci_registry.host}/team/latest"

    def tags(image: str) -> dict[str, str | None]:
        return {vendor: pinned.tag for vendor, pinned in variants(image).by_vendor.items()}

    for tag in ("latest-nvidia", "latest-amd", "nvidia"):
        oci_registry.push("team/latest", tag)
    assert tags(f"{name}:latest") == tags(name) == {"nvidia": "latest-nvidia", "amd": "latest-amd"}
    oci_registry.push("team/latest", "amd")
    assert tags(f"{name}:latest") == {"nvidia": "latest-nvidia", "amd": "latest-amd"}
    assert tags(name) == {"nvidia": "nvidia", "amd": "amd"}


def test_a_tag_that_is_pushed_again_is_seen_after_the_answer_has_run_out(oci_registry: oci.OciRegistry) -> None:
    oci_registry.push("client/moved", "nvidia", {"A": "1"})

    async def work(asked: registry.Registry) -> tuple[str, str, str]:
        now = [0.0]
        resolver = resolve.Resolver(asked, now=lambda: now[0])

        async def image() -> str:
            return (await resolver.variants(f"{oci_registry.host}/client/moved")).by_vendor["nvidia"].image

        first = await image()
        moved = oci_registry.push("client/moved", "nvidia", {"A": "2"})
        kept = await image()
        now[0] = 61
        assert (await image()).endswith(moved)
        return first, kept, await image()

    first, kept, last = asking(work)
    assert first == kept != last


# --- Credentials ----------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(oci_registry: oci.OciRegistry, tmp_path: Path) -> Iterator[tuple[oci.OciRegistry, str]]:
    """The same kind of registry, with a user and a password, and the digest of `team/app:v1-nvidia` in it."""
    running = oci.OciRegistry(tmp_path / "guarded", fetched.fetch())
    running.start()
    pushed = running.push("team/app", "v1-nvidia")
    running.stop()
    users, config = tmp_path / "htpasswd", tmp_path / "config.json"
    users.write_text(HTPASSWD)
    settings = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": f"{running.directory}/data"}},
        "http": {"addr": running.host, "secret": "test"},
        "auth": {"htpasswd": {"realm": "a registry", "path": str(users)}},
    }
    config.write_text(json.dumps(settings))
    process = launch.start([str(running.binary), "serve", str(config)], tmp_path / "log", tether=True)
    try:
        deadline = time.monotonic() + oci.START_TIMEOUT_S
        while not _listens(running.port):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        yield running, pushed
    finally:
        launch.kill_group(process.pid)
        process.wait(30)
        running.close()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_user_and_a_password_open_a_guarded_registry(guarded: tuple[oci.OciRegistry, str]) -> None:
    running, pushed = guarded
    login = {running.host: LOGIN}
    assert digest(f"{running.host}/team/app:v1-nvidia", credentials=login) == pushed
    assert tags(f"{running.host}/team/app", credentials=login) == ("v1-nvidia",)
    found = variants(f"{running.host}/team/app:v1", credentials=login)
    assert found.by_vendor["nvidia"].image == f"{running.host}/team/app@{pushed}"


def test_without_the_right_ones_it_says_for_which_host_to_give_them(guarded: tuple[oci.OciRegistry, str]) -> None:
    running, _ = guarded
    image = f"{running.host}/team/app:v1-nvidia"
    logins: list[Mapping[str, tuple[str, str]]] = [{}, {running.host: ("tester", "wrong")}, {"other.host": LOGIN}]
    for login in logins:
        with pytest.raises(errors.RegistryDenied, match=f"give credentials for {running.host}") as caught:
            digest(image, credentials=login)
        assert "wrong" not in str(caught.value)


class TokenRegistry(http.server.ThreadingHTTPServer):
    """A registry with one image and its own token service, which tells what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), TokenHandler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.digest = "sha256:" + "ab" * 32
        self.asked: list[tuple[str, str, str | None]] = []
        self.scopes: list[list[str]] = []


class TokenHandler(http.server.BaseHTTPRequestHandler):
    server: TokenRegistry
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url, authorization = urlsplit(self.path), self.headers.get("Authorization")
        self.server.asked.append((self.command, url.path, authorization))
        if url.path == "/token":
            self.server.scopes.append(parse_qs(url.query)["scope"])
            known = authorization == "Basic " + base64.b64encode(b"tester:hunter2").decode()
            self._answer(200 if known else 401, {"token": "open-sesame", "expires_in": 300} if known else {})
        elif authorization != "Bearer open-sesame":
            realm = f'Bearer realm="http://{self.server.host}/token",service="here"'
            self._answer(401, {}, {"WWW-Authenticate": realm})
        elif url.path.endswith("/tags/list"):
            self._answer(200, {"tags": ["v1-nvidia"]})
        else:
            self._answer(200, {"schemaVersion": 2}, {"Docker-Content-Digest": self.server.digest})

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def _answer(self, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: stderr is the tests'."""


@pytest.fixture
def token_registry() -> Iterator[TokenRegistry]:
    with TokenRegistry() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_token_is_fetched_once_for_tags_and_digests(token_registry: TokenRegistry) -> None:
    found = variants(f"{token_registry.host}/team/app:v1", credentials={token_registry.host: LOGIN})
    assert found.by_vendor["nvidia"].image == f"{token_registry.host}/team/app@{token_registry.digest}"
    assert token_registry.scopes == [["repository:team/app:pull"]]
    assert [path for _, path, _ in token_registry.asked] == [
        "/v2/team/app/tags/list",
        "/token",
        "/v2/team/app/tags/list",
        "/v2/team/app/tags/list",
        "/v2/team/app/manifests/v1-nvidia",
    ]


def test_a_token_service_that_refuses_is_told(token_registry: TokenRegistry) -> None:
    with pytest.raises(errors.RegistryDenied, match=r"token service 127\.0\.0\.1: status 401"):
        variants(f"{token_registry.host}/team/app:v1")


# --- Proxies --------------------------------------------------------------------------------------------------------


def test_no_proxy_stands_before_this_machine(oci_registry: oci.OciRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = oci_registry.push("client/proxied", "v1")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert digest(f"{oci_registry.host}/client/proxied:v1") == pushed
