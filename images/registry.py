"""Asks OCI registries for tags and digests: the package's only I/O.

The distribution spec says how: https://github.com/opencontainers/distribution-spec. Where real registries differ from
it, the comment names one.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

import httpx

from images import addresses, answers, challenges, errors, reference

ACCEPT: Final = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
MANIFEST_BYTES: Final = 4 * 1024 * 1024
PAGE_BYTES: Final = 8 * 1024 * 1024
TOKEN_BYTES: Final = 1024 * 1024
PAGE_TAGS: Final = 1000
PAGES: Final = 50
REDIRECTS: Final = 3

_DOCKER_HUB_HOST = "registry-1.docker.io"
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 2.0
_TOKEN_SECONDS = 60.0
_TOKEN_SPARE_SECONDS = 5.0
_AUTHORIZATIONS = 1024

Credentials = Mapping[str, tuple[str, str]]
"""Registry host -> (user, password)."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Answer:
    url: httpx.URL
    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class _Authorization:
    header: str
    expires: float


@dataclass(slots=True)
class _Question:
    """What is asked about which image, until when; keeps the last trouble for the error."""

    image: reference.Reference
    asked: str
    end: float
    trouble: str = ""

    @property
    def root(self) -> httpx.URL:
        """The registry's address."""
        host = self.image.registry
        try:
            address = httpx.URL(f"https://{_DOCKER_HUB_HOST if host == reference.DOCKER_HUB else host}")
        except httpx.InvalidURL as error:
            raise self.failed(f"{host!r} is no host: {error}") from error
        return address.copy_with(scheme="http") if addresses.is_loopback(address.host) else address

    def url(self, path: str) -> httpx.URL:
        """An address in the image's repository."""
        return self.root.join(f"/v2/{self.image.repository}/{path}")

    def allowed(self, target: str, what: str, base: httpx.URL | None = None) -> httpx.URL:
        """Where a registry sends us, if it may: to itself, or by HTTPS to another machine than this one.

        Otherwise whoever names an image could have services asked that only listen on this machine or link.
        """
        try:
            url = base.join(target) if base is not None else httpx.URL(target)
        except httpx.InvalidURL as error:
            raise self.failed(f"the {what} {target[:200]!r} is no URL") from error
        if _origin(url) == _origin(self.root):
            return url
        if url.scheme != "https" or not url.host:
            raise self.failed(f"the {what} {_shown(url)} is not https")
        if addresses.is_loopback(url.host) or addresses.is_link_local(url.host):
            raise self.failed(f"the {what} {_shown(url)} is an address of this machine or link")
        return url

    def failed(self, problem: str, kind: type[errors.RegistryError] = errors.RegistryError) -> errors.RegistryError:
        """The error that names the registry, the question and the problem."""
        return kind(f"registry {self.image.registry}: {self.asked}: {problem}")


class Registry:
    """Reads tags and digests of images in any registry; every failure is an `errors.RegistryError`.

    One object serves one event loop. Credentials are by registry host as images name it (`docker.io` for Docker Hub);
    without any, questions are anonymous. Registries on localhost, 127.0.0.0/8 and [::1] are spoken to in plain HTTP,
    without a proxy; all others in HTTPS only.
    """

    def __init__(
        self,
        client: httpx.AsyncClient | None = None,
        *,
        credentials: Credentials | None = None,
        deadline_seconds: float = 2.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._given = client
        self._own: dict[bool, httpx.AsyncClient] = {}
        self._credentials = dict(credentials or {})
        self._deadline_seconds = deadline_seconds
        self._now = now
        self._sleep = sleep
        self._jitter = jitter
        self._authorizations: dict[str, _Authorization] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections, but not those of a client that was given."""
        clients, self._own = list(self._own.values()), {}
        for client in clients:
            await client.aclose()

    async def tags(self, image: reference.Reference) -> tuple[str, ...]:
        """All tags of the image's repository, sorted; raises NotFound where there is no such repository."""
        question = _Question(image, f"tags of {image.name}", self._now() + self._deadline_seconds)
        async with self._deadline(question):
            return tuple(sorted(filter(reference.is_tag, await self._all_tags(question))))

    async def digest(self, image: reference.Reference) -> str:
        """The digest that the image's tag (or `latest`) has now; that of the index where the tag is one."""
        question = _Question(image, f"manifest of {image}", self._now() + self._deadline_seconds)
        async with self._deadline(question):
            return await self._manifest_digest(question)

    # --- Tags --------------------------------------------------------------------------------------------------------

    async def _all_tags(self, question: _Question) -> set[str]:
        found: set[str] = set()
        first = question.url("tags/list").copy_set_param("n", str(PAGE_TAGS))
        url = first
        for _ in range(PAGES):
            answer = await self._ask(question, "GET", url, PAGE_BYTES)
            page = self._decode(question, answer, answers.TagList, "a tag list").tags or []
            new = [tag for tag in page if tag not in found]
            found.update(new)
            following = answer.headers.get("link")
            target = challenges.next_link(following) if following is not None else None
            if target is not None:
                url = question.allowed(target, "next page of tags", answer.url)
                if _origin(url) != _origin(answer.url):
                    raise question.failed(f"the next page of tags is on another host, {url.host}")
            elif following is None and new:
                # ggcr's registry pages without a Link; docker-registry 2.8 ignores n and last and gives all again.
                url = first.copy_set_param("last", page[-1])
            else:
                return found
        raise question.failed(f"more than {PAGES} pages of tags; name a repository with fewer")

    # --- Digests -----------------------------------------------------------------------------------------------------

    async def _manifest_digest(self, question: _Question) -> str:
        image = question.image
        url = question.url(f"manifests/{image.digest or image.tag or 'latest'}")
        headers = {"Accept": ACCEPT}
        answer = await self._ask(question, "HEAD", url, 0, headers, unsupported=True)
        digest: str | None = answer.headers.get("docker-content-digest")
        if answer.status != 200 or digest is None:
            # Old registries have no HEAD or leave the header out; the digest is the hash of the body.
            answer = await self._ask(question, "GET", url, MANIFEST_BYTES, headers)
            if self._decode(question, answer, answers.Manifest, "a manifest").schema_version != 2:
                raise question.failed("the manifest is not of schema version 2; push the image with a current tool")
            digest = answer.headers.get("docker-content-digest") or answers.sha256(answer.body)
            if digest.startswith("sha256:") and digest != answers.sha256(answer.body):
                raise question.failed(
                    f"the manifest's digest is {answers.sha256(answer.body)}, but the header says {digest!r}"
                )
        if not reference.is_digest(digest):
            raise question.failed(f"{digest[:100]!r} is no digest")
        if image.digest is not None and digest != image.digest:
            raise question.failed(f"the answer is another manifest, {digest}")
        return digest

    # --- One question: credentials, redirects, retries ---------------------------------------------------------------

    @asynccontextmanager
    async def _deadline(self, question: _Question) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._deadline_seconds):
                yield
        except TimeoutError as error:
            problem = f"no answer within {self._deadline_seconds:g} s"
            last = f"; before that: {question.trouble}" if question.trouble else ""
            raise question.failed(problem + last, errors.RegistryUnreachable) from error

    async def _ask(
        self,
        question: _Question,
        method: str,
        url: httpx.URL,
        limit: int,
        headers: Mapping[str, str] | None = None,
        *,
        unsupported: bool = False,
    ) -> _Answer:
        """The answer with status 200; with `unsupported`, also one that says that the method is not known."""
        name = question.image.name
        known = self._authorizations.get(name)
        valid = known is not None and self._now() < known.expires
        authorization = known.header if known is not None and valid else None
        answer = await self._follow(question, method, url, limit, headers or {}, authorization)
        # Also with a token: it may have run out early, or be for another question (Azure's registry wants
        # `metadata_read` for tags and `pull` for manifests).
        if answer.status == 401:
            fresh = await self._authorize(question, answer)
            answer = await self._follow(question, method, url, limit, headers or {}, fresh.header)
            if answer.status == 200:
                if len(self._authorizations) >= _AUTHORIZATIONS:
                    self._authorizations.clear()
                self._authorizations[name] = fresh
        if answer.status == 200 or (unsupported and answer.status in (400, 405, 501)):
            return answer
        raise self._refused(question, answer)

    async def _follow(
        self,
        question: _Question,
        method: str,
        url: httpx.URL,
        limit: int,
        headers: Mapping[str, str],
        authorization: str | None,
    ) -> _Answer:
        origin = _origin(url)
        for _ in range(REDIRECTS + 1):
            # Credentials are for the registry; another host that it points to must not see them.
            mine = authorization is not None and _origin(url) == origin
            sent = {**headers, "Authorization": str(authorization)} if mine else dict(headers)
            answer = await self._send(question, method, url, limit, sent)
            if answer.status not in (301, 302, 303, 307, 308):
                return answer
            target = answer.headers.get("location")
            if not target:
                raise question.failed(f"status {answer.status} without a location")
            url = question.allowed(target, "redirect to", url)
        raise question.failed(f"more than {REDIRECTS} redirects")

    async def _send(
        self, question: _Question, method: str, url: httpx.URL, limit: int, headers: Mapping[str, str]
    ) -> _Answer:
        """One answer, after as many tries as the deadline has room for."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            wait = pause * (0.5 + self._jitter() / 2)
            failure: Exception | None = None
            answer: _Answer | None = None
            try:
                answer = await self._once(question, method, url, limit, headers)
                question.trouble = f"status {answer.status}"
            except (httpx.TransportError, httpx.DecodingError) as error:
                failure = error
                question.trouble = _cause(error)
            if answer is not None:
                if answer.status not in _RETRIED:
                    return answer
                wait = max(wait, answers.retry_after(answer.headers.get("retry-after", "")))
            if self._now() + wait >= question.end:
                problem = question.trouble or "no answer"
                raise question.failed(f"{problem}; try again later", errors.RegistryUnreachable) from failure
            await self._sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _once(
        self, question: _Question, method: str, url: httpx.URL, limit: int, headers: Mapping[str, str]
    ) -> _Answer:
        client = self._client(url)
        # Compressed bodies would hide their size and, for manifests, the bytes that the digest is of.
        request = client.build_request(method, url, headers={"Accept-Encoding": "identity", **headers})
        response = await client.send(request, stream=True, follow_redirects=False, auth=None)
        try:
            body = bytearray()
            if method != "HEAD":
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > limit and response.status_code == 200:
                        raise question.failed(f"the answer has more than {limit} bytes")
                    if len(body) > limit:
                        break
            return _Answer(url, response.status_code, response.headers, bytes(body))
        finally:
            await response.aclose()

    def _client(self, url: httpx.URL) -> httpx.AsyncClient:
        if self._given is not None:
            return self._given
        here = addresses.is_loopback(url.host)
        if here not in self._own:
            # Proxies from the environment never stand before this machine itself.
            self._own[here] = httpx.AsyncClient(trust_env=not here, timeout=self._deadline_seconds)
        return self._own[here]

    # --- Credentials -------------------------------------------------------------------------------------------------

    async def _authorize(self, question: _Question, answer: _Answer) -> _Authorization:
        """What to send so that the registry answers; raises RegistryDenied where there is nothing to send."""
        if _origin(answer.url) != _origin(question.url("")):
            raise question.failed(f"{answer.url.host}, where it redirects to, wants credentials", errors.RegistryDenied)
        login = self._credentials.get(question.image.registry)
        offers = challenges.parse(answer.headers.get_list("www-authenticate"))
        if "bearer" in offers:
            return await self._token(question, offers["bearer"], login)
        if "basic" not in offers:
            raise self._refused(question, answer)
        if login is None:
            host = question.image.registry
            problem = f"it wants a user and a password; give credentials for {host}"
            raise question.failed(problem, errors.RegistryDenied)
        return _Authorization(challenges.basic(*login), float("inf"))

    async def _token(
        self, question: _Question, offer: Mapping[str, str], login: tuple[str, str] | None
    ) -> _Authorization:
        realm = question.allowed(offer.get("realm", ""), "token service")
        repository = question.image.repository
        url = realm.copy_set_param("scope", challenges.pull_scope(offer.get("scope"), repository))
        if "service" in offer:
            url = url.copy_set_param("service", offer["service"])
        headers = {"Authorization": challenges.basic(*login)} if login is not None else {}
        answer = await self._send(question, "GET", url, TOKEN_BYTES, headers)
        if answer.status != 200:
            raise self._refused(question, answer, f"the token service {realm.host}")
        token = self._decode(question, answer, answers.Token, "a token")
        text = token.token or token.access_token
        if not text or not text.isascii() or not text.isprintable():
            raise question.failed(f"the token service {realm.host} gave no token")
        seconds = _TOKEN_SECONDS if token.expires_in is None else token.expires_in
        return _Authorization(f"Bearer {text}", self._now() + max(seconds - _TOKEN_SPARE_SECONDS, 1.0))

    # --- Answers that are none ---------------------------------------------------------------------------------------

    @staticmethod
    def _refused(question: _Question, answer: _Answer, who: str = "") -> errors.RegistryError:
        code = answers.error_code(answer.body)
        status = f"{who + ': ' if who else ''}status {answer.status}{f' ({code})' if code else ''}"
        if answer.status in (401, 403):
            host = question.image.registry
            problem = f"{status}: denied, or no such repository; give credentials for {host} that may pull it"
            return question.failed(problem, errors.RegistryDenied)
        if answer.status == 404 and not who:
            return question.failed(f"{status}: not found; check the name, or push it", errors.NotFound)
        return question.failed(status)

    @staticmethod
    def _decode(question: _Question, answer: _Answer, kind: type[_T], what: str) -> _T:
        try:
            return answers.decode(answer.body, kind)
        except ValueError as error:
            raise question.failed(f"the answer is not {what}: {error}") from error


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _shown(url: httpx.URL) -> str:
    """A URL without what may be secret in it."""
    return repr(str(url.copy_with(userinfo=b"", query=None, fragment=None))[:200])


def _cause(error: Exception) -> str:
    text = str(error)[:256]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
