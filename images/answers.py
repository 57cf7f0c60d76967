"""What registries' answers say, read from their bytes."""

import hashlib
import re
from typing import TypeVar

import msgspec

_CODE = re.compile(r"[A-Z][A-Z_]{1,40}")
_T = TypeVar("_T")


class TagList(msgspec.Struct, frozen=True):
    """A page of `tags/list`; no tags may be null."""

    tags: list[str] | None = None


class Token(msgspec.Struct, frozen=True):
    """A token service's answer; the spec allows either name."""

    token: str | None = None
    access_token: str | None = None
    expires_in: float | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """The part of an image's or an index's manifest that tells that it is one."""

    schema_version: int


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""


class _Problems(msgspec.Struct, frozen=True):
    errors: list[_Problem] = []


def decode(body: bytes, kind: type[_T]) -> _T:
    """The body as one of these; raises ValueError, which says what is wrong with it."""
    return msgspec.json.decode(body, type=kind)


def sha256(body: bytes) -> str:
    """The digest of a manifest."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def retry_after(header: str) -> float:
    """The seconds that a registry asks to wait; 0 without. The header's other form, a date, is not read."""
    return float(header) if header.isascii() and header.isdigit() and len(header) < 8 else 0.0


def error_code(body: bytes) -> str:
    """The spec's error code, such as `NAME_UNKNOWN`; empty where the body holds none."""
    try:
        problems = decode(body, _Problems).errors
    except ValueError:
        return ""
    return next((problem.code for problem in problems if _CODE.fullmatch(problem.code)), "")
