"""What an image is called: registry, repository, tag and digest, by the rules of Docker and OCI.

Grammar and limits: distribution's `reference` package, https://github.com/distribution/reference.
"""

import ipaddress
import re
from dataclasses import dataclass, field

from images import errors

DOCKER_HUB = "docker.io"

_DOCKER_HUB_NAMES = (DOCKER_HUB, "index.docker.io")
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<address>[0-9a-fA-F:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_REPOSITORY_MAX = 255
_HOST_MAX = 255
_QUOTED_MAX = 80


@dataclass(frozen=True, slots=True)
class Reference:
    """One image's name, normalised; two references to one image are equal however their names were written."""

    registry: str
    """Host, lower case, with its port where one was written; Docker Hub is `docker.io`."""
    repository: str
    """Path in the registry, with Docker Hub's `library/` where it was left out."""
    tag: str | None = None
    digest: str | None = None
    written: str = field(default="", compare=False, repr=False)
    """The name as it was written, without tag and digest; empty: the full one."""

    @property
    def name(self) -> str:
        """`registry/repository`, in full."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.written or self.name}{tag}{digest}"

    def pinned(self, digest: str) -> str:
        """The image of that digest under the name that was written: `repo@sha256:…`; the tag is left out."""
        return f"{self.written or self.name}@{digest}"

    def with_tag(self, tag: str) -> "Reference":
        """The same repository at a tag."""
        return Reference(self.registry, self.repository, tag, None, self.written)


def parse(text: str) -> Reference:
    """The reference that a text writes; raises BadReference, which says what is wrong with it."""
    if not text:
        raise errors.BadReference("image reference is empty; write REPOSITORY[:TAG][@DIGEST]")
    if len(text) > _HOST_MAX + _REPOSITORY_MAX + 512:
        raise _bad(text, f"{len(text)} characters are more than any registry takes")
    name, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _bad(text, f"digest {_quoted(digest)} is not sha256: and 64 lower-case hex digits")
    # A colon after the last slash starts the tag; one before it belongs to the registry's port.
    slash, colon = name.rfind("/"), name.rfind(":")
    tag: str | None = None
    if colon > slash:
        name, tag = name[:colon], name[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise _bad(
                text, f"tag {_quoted(tag)} is not 1 to 128 letters, digits, '_', '.', '-' (the first no '.' or '-')"
            )
    registry, repository = split(name)
    _check_host(text, registry)
    _check_repository(text, repository)
    return Reference(registry, repository, tag, digest if at else None, name)


def split(name: str) -> tuple[str, str]:
    """(registry, repository) of a name without tag and digest; checks nothing.

    The first part is a registry when it could not be a repository's: it has a dot or a port, or is `localhost`.
    """
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first.lower() == "localhost"):
        registry, repository = DOCKER_HUB, name
    else:
        registry, repository = first.lower(), rest
    if registry in _DOCKER_HUB_NAMES:
        registry = DOCKER_HUB
        if "/" not in repository:
            repository = f"library/{repository}"
    return registry, repository


def is_tag(text: str) -> bool:
    """Whether a text can be a tag."""
    return _TAG.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether a text is a digest."""
    return _DIGEST.fullmatch(text) is not None


def _check_host(text: str, host: str) -> None:
    found = _HOST.fullmatch(host)
    if found is None or len(host) > _HOST_MAX or not _is_address(found["address"]):
        raise _bad(text, f"registry {_quoted(host)} is no host name with an optional port")
    if found["port"] and not 0 < int(found["port"]) < 65536:
        raise _bad(text, f"port {found['port']} of registry {_quoted(host)} is not 1 to 65535")


def _is_address(text: str | None) -> bool:
    try:
        return text is None or ipaddress.IPv6Address(text) is not None
    except ValueError:
        return False


def _check_repository(text: str, repository: str) -> None:
    if len(repository) > _REPOSITORY_MAX:
        raise _bad(text, f"the repository has {len(repository)} characters, at most {_REPOSITORY_MAX} are allowed")
    for component in repository.split("/"):
        if _COMPONENT.fullmatch(component):
            continue
        if component != component.lower():
            raise _bad(text, f"repository part {_quoted(component)} must be lower case")
        rule = "lower-case letters and digits joined by '.', '_', '__' or '-'"
        raise _bad(text, f"repository part {_quoted(component)} is not {rule}")
    # Docker keeps a bare 64-digit hex name for image ids.
    if _HEX64.fullmatch(repository.removeprefix("library/")):
        raise _bad(text, "64 hex digits are an image id, not a repository; write REPOSITORY@sha256:DIGITS")


def _bad(text: str, problem: str) -> errors.BadReference:
    return errors.BadReference(f"image reference {_quoted(text)}: {problem}")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _QUOTED_MAX else text[:_QUOTED_MAX] + "…")
