"""What the registry client does with every kind of answer; the real registry's are in tests/registry."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest

from images import errors, reference, registry

DIGEST = "sha256:" + "ab" * 32
MANIFEST = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}).encode()
LOGIN = {"reg.corp": ("user", "secret")}

Handler = Callable[[httpx.Request], httpx.Response]


class Clock:
    """Time that only passes while the client waits."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def asking(
    handler: Handler,
    work: Callable[[registry.Registry], Awaitable[Any]],
    clock: Clock | None = None,
    credentials: Mapping[str, tuple[str, str]] | None = None,
) -> Any:
    clock = clock or Clock()

    async def run() -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as client:
            asked = registry.Registry(client, credentials=credentials, now=clock, sleep=clock.sleep, jitter=lambda: 1.0)
            return await work(asked)

    return asyncio.run(run())


def digest(handler: Handler, image: str = "reg.corp/team/app:v1", **more: Any) -> str:
    return str(asking(handler, lambda asked: asked.digest(reference.parse(image)), **more))


def tags(handler: Handler, image: str = "reg.corp/team/app", **more: Any) -> tuple[str, ...]:
    return tuple(asking(handler, lambda asked: asked.tags(reference.parse(image)), **more))


def found(digest_: str = DIGEST) -> httpx.Response:
    return httpx.Response(200, headers={"Docker-Content-Digest": digest_})


# --- Where and how it asks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "url"),
    [
        ("reg.corp/team/app:v1", "https://reg.corp/v2/team/app/manifests/v1"),
        ("reg.corp:5000/app", "https://reg.corp:5000/v2/app/manifests/latest"),
        ("ubuntu:22.04", "https://registry-1.docker.io/v2/library/ubuntu/manifests/22.04"),
        ("localhost:5000/app:v1", "http://localhost:5000/v2/app/manifests/v1"),
        ("127.8.9.1:5000/app:v1", "http://127.8.9.1:5000/v2/app/manifests/v1"),
        ("[::1]:5000/app:v1", "http://[::1]:5000/v2/app/manifests/v1"),
        ("127.0.0.1.evil.example/app:v1", "https://127.0.0.1.evil.example/v2/app/manifests/v1"),
        ("localhost.example/app:v1", "https://localhost.example/v2/app/manifests/v1"),
        ("10.0.0.1:5000/app:v1", "https://10.0.0.1:5000/v2/app/manifests/v1"),
        (f"reg.corp/app:v1@{DIGEST}", f"https://reg.corp/v2/app/manifests/{DIGEST}"),
    ],
)
def test_only_this_machine_is_spoken_to_in_plain_http(image: str, url: str) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return found()

    assert digest(handler, image) == DIGEST
    assert [(request.method, str(request.url)) for request in seen] == [("HEAD", url)]
    assert "application/vnd.oci.image.index.v1+json" in seen[0].headers["Accept"]
    assert "Authorization" not in seen[0].headers


def test_a_host_that_is_none_is_an_error_of_the_registry() -> None:
    with pytest.raises(errors.RegistryError, match=r"999\.999\.1\.1"):
        digest(lambda _: found(), "999.999.1.1/app:v1")


# --- Tags -----------------------------------------------------------------------------------------------------------


def pages(all_tags: list[str], size: int, link: str) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        last = request.url.params.get("last", "")
        rest = [tag for tag in all_tags if tag > last] if last else all_tags
        page, headers = rest[:size], {}
        if link and len(rest) > size:
            headers["Link"] = link.format(page[-1])
        return httpx.Response(200, json={"name": "team/app", "tags": page}, headers=headers)

    return handler


@pytest.mark.parametrize(
    "link",
    [
        "",  # ggcr's registry: pages, but no Link
        '</v2/team/app/tags/list?last={}&n=2>; rel="next"',
        "<https://reg.corp/v2/team/app/tags/list?last={}>; rel=next",
    ],
)
def test_all_pages_are_read_and_sorted(link: str) -> None:
    assert tags(pages(["a", "b", "c", "d", "e"], 2, link)) == ("a", "b", "c", "d", "e")


def test_a_registry_that_ignores_paging_gives_its_tags_once() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url.params))
        return httpx.Response(200, json={"tags": ["nvidia", "amd"]})

    assert tags(handler) == ("amd", "nvidia")
    assert asked == ["n=1000", "n=1000&last=amd"]


def test_a_repository_without_tags_has_none() -> None:
    assert tags(lambda _: httpx.Response(200, json={"name": "app", "tags": None})) == ()


def test_what_cannot_be_a_tag_is_left_out() -> None:
    assert tags(lambda _: httpx.Response(200, json={"tags": ["v1", "../x", "", "a b"]})) == ("v1",)


def test_paging_without_an_end_is_an_error_and_not_a_part_of_the_tags() -> None:
    count = iter(range(1000))

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"tags": [f"t{next(count)}"]})

    with pytest.raises(errors.RegistryError, match="more than 50 pages"):
        tags(handler)


@pytest.mark.parametrize("link", ["https://evil.example/v2/x", "http://reg.corp/v2/x", "https://127.0.0.1/x", "//["])
def test_the_next_page_is_on_the_same_registry(link: str) -> None:
    with pytest.raises(errors.RegistryError, match="next page of tags"):
        tags(lambda _: httpx.Response(200, json={"tags": ["a"]}, headers={"Link": f"<{link}>; rel=next"}))


# --- Digests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [httpx.Response(200), httpx.Response(405), httpx.Response(501), httpx.Response(400)])
def test_without_a_digest_in_the_header_the_manifest_is_hashed(head: httpx.Response) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "HEAD":
            return httpx.Response(head.status_code)
        return httpx.Response(200, content=MANIFEST)

    assert digest(handler) == f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (httpx.Response(200, content=b"<html>login</html>"), "not a manifest"),
        (httpx.Response(200, json={"schemaVersion": 1}), "schema version 2"),
        (httpx.Response(200, content=MANIFEST, headers={"Docker-Content-Digest": DIGEST}), "header says"),
        (httpx.Response(200, content=b" " * (4 * 1024 * 1024 + 1)), "more than 4194304 bytes"),
        (httpx.Response(404), "not found"),
    ],
)
def test_a_manifest_that_is_none_gives_no_digest(answer: httpx.Response, says: str) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(405) if request.method == "HEAD" else answer

    with pytest.raises(errors.RegistryError, match=says):
        digest(handler)


@pytest.mark.parametrize("text", ["", "sha256:12", "latest", "md5:" + "0" * 32])
def test_a_digest_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(errors.RegistryError, match=r"no digest|header says|not a manifest"):
        digest(lambda _: httpx.Response(200, headers={"Docker-Content-Digest": text}))


def test_another_manifest_than_the_pinned_one_is_refused() -> None:
    with pytest.raises(errors.RegistryError, match="another manifest"):
        digest(lambda _: found("sha256:" + "cd" * 32), f"reg.corp/app@{DIGEST}")


# --- Failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (404, errors.NotFound, r"registry reg\.corp: tags of reg\.corp/team/app: status 404 \(NAME_UNKNOWN\)"),
        (403, errors.RegistryDenied, "give credentials for reg.corp"),
        (401, errors.RegistryDenied, "give credentials for reg.corp"),
        (418, errors.RegistryError, "status 418"),
        (429, errors.RegistryUnreachable, "status 429"),
        (503, errors.RegistryUnreachable, "status 503"),
    ],
)
def test_each_refusal_has_its_error(status: int, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        tags(lambda _: httpx.Response(status, json={"errors": [{"code": "NAME_UNKNOWN", "message": "x"}]}))
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [b"", b"null", b"{", b'{"tags": "x"}', b'{"tags": [1]}', b"\xff\xfe"])
def test_an_answer_that_is_no_tag_list_is_an_error(body: bytes) -> None:
    with pytest.raises(errors.RegistryError, match="not a tag list"):
        tags(lambda _: httpx.Response(200, content=body))


def test_passing_trouble_is_asked_again_with_growing_pauses() -> None:
    clock = Clock()
    troubles: list[httpx.Response | Exception] = [
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.Response(429),
    ]

    def handler(request: httpx.Request) -> httpx.Response:
        if not troubles:
            return found()
        trouble = troubles.pop(0)
        if isinstance(trouble, Exception):
            raise trouble
        return trouble

    assert digest(handler, clock=clock) == DIGEST
    assert clock.slept == [0.1, 0.2, 0.4]


def test_it_gives_up_before_its_deadline_and_says_what_was_wrong() -> None:
    clock = Clock()

    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    with pytest.raises(errors.RegistryUnreachable, match="ConnectError: connection refused; try again later") as caught:
        digest(handler, clock=clock)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert 1 < clock.time < 2


def test_a_registry_that_asks_for_a_long_pause_is_not_waited_for() -> None:
    clock = Clock()
    with pytest.raises(errors.RegistryUnreachable, match="429"):
        digest(lambda _: httpx.Response(429, headers={"Retry-After": "30"}), clock=clock)
    assert clock.slept == []


def test_a_short_pause_that_is_asked_for_is_kept() -> None:
    clock = Clock()
    answers = [httpx.Response(429, headers={"Retry-After": "1"}), found()]
    assert digest(lambda _: answers.pop(0), clock=clock) == DIGEST
    assert clock.slept == [1.0]


# --- Credentials ----------------------------------------------------------------------------------------------------


def bearer(realm: str = "https://auth.corp/token", scope: str = "repository:team/app:pull") -> httpx.Response:
    challenge = f'Bearer realm="{realm}",service="reg.corp",scope="{scope}"'
    return httpx.Response(401, headers={"WWW-Authenticate": challenge})


def tokens(expires_in: float | None = 300, *, login: str | None = None) -> tuple[Handler, list[httpx.Request]]:
    """A registry with a token service that gives numbered tokens, and what both were asked."""
    seen: list[httpx.Request] = []
    given: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.host == "auth.corp":
            if login is not None and request.headers.get("Authorization") != login:
                return httpx.Response(401)
            given.append(f"token-{len(given)}")
            return httpx.Response(200, json={"token": given[-1], "expires_in": expires_in})
        if given and request.headers.get("Authorization") == f"Bearer {given[-1]}":
            return found()
        return bearer()

    return handler, seen


def hosts(seen: list[httpx.Request]) -> list[str]:
    return [request.url.host for request in seen]


def test_an_anonymous_token_is_fetched_once_and_used_until_it_runs_out() -> None:
    handler, seen = tokens()
    clock = Clock()

    async def work(asked: registry.Registry) -> None:
        for seconds in (0, 100, 190, 10):
            clock.time += seconds
            await asked.digest(reference.parse("reg.corp/team/app:v1"))

    asking(handler, work, clock)
    assert hosts(seen) == [
        "reg.corp",
        "auth.corp",
        "reg.corp",
        "reg.corp",
        "reg.corp",
        "reg.corp",
        "auth.corp",
        "reg.corp",
    ]
    assert dict(seen[1].url.params) == {"service": "reg.corp", "scope": "repository:team/app:pull"}
    assert "Authorization" not in seen[1].headers


def test_credentials_go_to_the_token_service_and_never_into_errors() -> None:
    handler, seen = tokens(login="Basic dXNlcjpzZWNyZXQ=")
    assert digest(handler, credentials=LOGIN) == DIGEST
    assert [request.headers.get("Authorization") for request in seen] == [
        None,
        "Basic dXNlcjpzZWNyZXQ=",
        "Bearer token-0",
    ]
    with pytest.raises(errors.RegistryDenied, match=r"token service auth\.corp: status 401") as caught:
        digest(tokens(login="Basic other")[0], credentials=LOGIN)
    assert "secret" not in str(caught.value)


def test_a_token_for_another_question_is_replaced() -> None:
    """Azure's registry wants `metadata_read` for tags and `pull` for manifests."""

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "auth.corp":
            return httpx.Response(200, json={"access_token": request.url.params["scope"].rpartition(":")[2]})
        needed = "metadata_read" if request.url.path.endswith("/tags/list") else "pull"
        if request.headers.get("Authorization") != f"Bearer {needed}":
            return bearer(scope=f"repository:team/app:{needed}")
        return found() if needed == "pull" else httpx.Response(200, json={"tags": ["v1"]})

    async def work(asked: registry.Registry) -> tuple[Any, ...]:
        image = reference.parse("reg.corp/team/app:v1")
        return (await asked.tags(image), await asked.digest(image), await asked.tags(image))

    assert asking(handler, work) == (("v1",), DIGEST, ("v1",))


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.corp/token",
        "http://reg.corp/token",
        "http://127.0.0.1:8080/token",
        "https://127.0.0.1/token",
        "https://localhost/token",
        "https://[::1]/token",
        "https://169.254.169.254/token",
        "file:///etc/passwd",
        "https://",
        "/token",
        "",
    ],
)
def test_a_token_service_is_https_and_elsewhere(realm: str) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return bearer(realm)

    with pytest.raises(errors.RegistryError, match="token service"):
        digest(handler, credentials=LOGIN)
    assert hosts(seen) == ["reg.corp"]


@pytest.mark.parametrize("body", [{}, {"token": ""}, {"token": "a\r\nX: y"}, {"token": "é"}, []])
def test_a_token_that_is_none_is_refused(body: Any) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=body) if request.url.host == "auth.corp" else bearer()

    with pytest.raises(errors.RegistryError, match="token"):
        digest(handler)


def test_a_token_service_that_is_missing_does_not_mean_that_the_image_is() -> None:
    with pytest.raises(errors.RegistryError, match=r"token service auth\.corp: status 404") as caught:
        digest(lambda request: httpx.Response(404) if request.url.host == "auth.corp" else bearer())
    assert not isinstance(caught.value, errors.NotFound)


def test_a_registry_that_refuses_every_token_is_not_asked_for_ever() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"token": f"t{len(seen)}"}) if request.url.host == "auth.corp" else bearer()

    with pytest.raises(errors.RegistryDenied, match="or no such repository"):
        digest(handler)
    assert hosts(seen) == ["reg.corp", "auth.corp", "reg.corp"]


# --- Redirects ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "keeps"), [("https://cdn.example/x", False), ("/v2/other", True)])
def test_a_redirect_takes_credentials_only_to_the_registry_itself(target: str, keeps: bool) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path in ("/x", "/v2/other"):
            return found()
        if "Authorization" not in request.headers:
            return httpx.Response(401, headers={"WWW-Authenticate": "Basic realm=x"})
        return httpx.Response(307, headers={"Location": target})

    assert digest(handler, credentials=LOGIN) == DIGEST
    assert ("Authorization" in seen[-1].headers) is keeps


@pytest.mark.parametrize(
    "target", ["http://cdn.example/x", "https://127.0.0.1/x", "http://169.254.169.254/x", "ftp://x/"]
)
def test_a_redirect_leads_neither_off_https_nor_to_this_machine(target: str) -> None:
    with pytest.raises(errors.RegistryError, match="redirect to"):
        digest(lambda _: httpx.Response(302, headers={"Location": target}))


def test_redirects_come_to_an_end() -> None:
    with pytest.raises(errors.RegistryError, match="more than 3 redirects"):
        digest(lambda _: httpx.Response(302, headers={"Location": "/again"}))


def test_another_host_that_wants_credentials_gets_none() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.host == "reg.corp":
            return httpx.Response(307, headers={"Location": "https://cdn.example/x"})
        return httpx.Response(401, headers={"WWW-Authenticate": "Basic realm=x"})

    with pytest.raises(errors.RegistryDenied, match=r"cdn\.example, where it redirects to, wants credentials"):
        digest(handler, credentials=LOGIN)
