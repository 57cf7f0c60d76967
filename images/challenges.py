"""The headers by which registries ask for credentials and point to the next page."""

import base64
import re
from collections.abc import Iterable, Mapping

# What a registry sends is read once over: the quantifiers give nothing back, and no honest header is longer.
_MAX = 4096
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_PARAMETER = rf"{_WORD}\s*=\s*(?:\"(?:[^\"\\]|\\.)*\"|[^\s,\"]*)"
_CHALLENGE = re.compile(
    rf"(?P<scheme>{_WORD})(?:\s+(?P<parameters>{_PARAMETER}(?:\s*,\s*{_PARAMETER})*))?\s*(?:,|$)", re.DOTALL
)
_ONE_PARAMETER = re.compile(
    rf"(?P<key>{_WORD})\s*=\s*(?:\"(?P<quoted>(?:[^\"\\]|\\.)*)\"|(?P<bare>[^\s,\"]*))", re.DOTALL
)
_LINK = re.compile(r"<(?P<target>[^>]*)>(?P<parameters>(?:\s*;\s*[^,;]+)*)")
_NEXT = re.compile(r";\s*rel\s*=\s*\"?next\"?\s*(?:;|$)", re.IGNORECASE)


def parse(headers: Iterable[str]) -> dict[str, dict[str, str]]:
    """`WWW-Authenticate` headers (RFC 9110, 11.6.1) as scheme -> parameters, all names in lower case."""
    offers: dict[str, dict[str, str]] = {}
    for header in headers:
        for challenge in _CHALLENGE.finditer(header[:_MAX]):
            found = _ONE_PARAMETER.finditer(challenge["parameters"] or "")
            offers.setdefault(challenge["scheme"].lower(), {one["key"].lower(): _value(one) for one in found})
    return offers


def basic(user: str, password: str) -> str:
    """The `Authorization` header of a user and password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def pull_scope(asked: str | None, repository: str) -> str:
    """The scope to ask a token for: the registry's own wish where that only reads this repository.

    Azure's registry wants `metadata_read` for tags, so `pull` alone is not enough there. A registry must not make
    anygpu ask for a token that can write, or for other repositories.
    """
    kind, _, actions = (asked or "").rpartition(":")
    reads = all(action in ("pull", "metadata_read", "content_read") for action in actions.split(","))
    return f"{kind}:{actions}" if kind == f"repository:{repository}" and reads else f"repository:{repository}:pull"


def next_link(header: str) -> str | None:
    """The target of a `Link` header's `rel="next"` (RFC 8288)."""
    for link in _LINK.finditer(header[:_MAX]):
        if _NEXT.search(link["parameters"]):
            return link["target"]
    return None


def _value(parameter: re.Match[str]) -> str:
    fields: Mapping[str, str | None] = parameter.groupdict()
    if fields["quoted"] is None:
        return fields["bare"] or ""
    return re.sub(r"\\(.)", r"\1", fields["quoted"])
