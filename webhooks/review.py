"""AdmissionReview v1: bytes in, bytes out."""

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from scheduler import errors

Json = dict[str, Any]


class _Kind(msgspec.Struct, frozen=True):
    kind: str = ""


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """What of an admission request matters."""

    uid: str
    operation: str = "CREATE"
    namespace: str | None = None
    name: str | None = None
    dry_run: bool | None = None
    object: Json | None = None
    old_object: Json | None = None
    kind: _Kind = _Kind()


class _Review(msgspec.Struct, frozen=True):
    request: Request


_decoder = msgspec.json.Decoder(_Review)


def decode(body: bytes) -> Request:
    """The request of a review; raises InvalidInput saying what is not as the apiserver sends it."""
    try:
        return _decoder.decode(body).request
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.InvalidInput(f"the body is no AdmissionReview: {error}") from error


def allow(uid: str, before: Json | None = None, after: Json | None = None, warnings: tuple[str, ...] = ()) -> bytes:
    """Let the object in, changed from `before` to `after` where these are given."""
    response: Json = {"uid": uid, "allowed": True}
    if before is not None and after is not None and before != after:
        patch = msgspec.json.encode(list(_changes(before, after)))
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode()}
    return _encode(response, warnings)


def _changes(before: Json, after: Json) -> Iterator[Json]:
    """The JSON patch between two objects: each field of `metadata` and `spec` that differs, whole.

    Field by field on purpose: a smallest patch moves array items about, and gets it wrong (python-json-patch).
    """
    for part in after:
        old, new = before.get(part), after[part]
        if not isinstance(old, dict):
            if old != new:
                yield {"op": "add", "path": _pointer(part), "value": new}
            continue
        for key in new:
            if key not in old or old[key] != new[key]:
                yield {"op": "add", "path": _pointer(part, key), "value": new[key]}
        for key in old.keys() - new.keys():
            yield {"op": "remove", "path": _pointer(part, key)}


def _pointer(*keys: str) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def deny(uid: str, message: str, code: int = 400) -> bytes:
    """Refuse the object; the message stands in kubectl's output."""
    reasons = {400: "BadRequest", 500: "InternalError", 503: "ServiceUnavailable"}
    status = {"status": "Failure", "message": message, "code": code, "reason": reasons[code]}
    return _encode({"uid": uid, "allowed": False, "status": status}, ())


def _encode(response: Json, warnings: tuple[str, ...]) -> bytes:
    if warnings:
        # The apiserver drops warnings that hold control characters, silently.
        response["warnings"] = ["".join(c if c.isprintable() else " " for c in text) for text in warnings]
    return msgspec.json.encode({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
