"""AdmissionReview on the wire: what comes in is checked, what goes out is what the apiserver takes."""

import base64
import json
from typing import Any

import jsonpatch
import pytest

from scheduler import errors
from webhooks import review

Json = dict[str, Any]


def answer(body: bytes) -> Json:
    document = json.loads(body)
    assert (document["apiVersion"], document["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
    return document["response"]


def patched(before: Json, after: Json) -> Any:
    response = answer(review.allow("u", before, after))
    return jsonpatch.apply_patch(before, json.loads(base64.b64decode(response["patch"])))


def test_an_unchanged_object_is_let_in_without_patch_and_type() -> None:
    assert answer(review.allow("u")) == {"uid": "u", "allowed": True}
    assert answer(review.allow("u", {"spec": {}}, {"spec": {}})) == {"uid": "u", "allowed": True}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"metadata": {}}, {"metadata": {"annotations": {"a/b": "c"}}}),
        ({"metadata": {"annotations": None}}, {"metadata": {"annotations": {"a": "b"}}}),
        ({"spec": {"a~/b": 1, "gone": 2}}, {"spec": {"a~/b": 2}}),
        ({"spec": None}, {"spec": {"x": 1}}),
        ({}, {"spec": {"x": 1}}),
        ({"spec": {"x": [1, 2, 3]}}, {"spec": {"x": [3, 1]}}),
    ],
)
def test_the_patch_makes_one_of_the_other(before: Json, after: Json) -> None:
    assert patched(before, after) == after


def test_a_refusal_has_a_status_and_no_patch() -> None:
    response = answer(review.deny("u", "because", code=503))
    assert response == {
        "uid": "u",
        "allowed": False,
        "status": {"status": "Failure", "message": "because", "code": 503, "reason": "ServiceUnavailable"},
    }


def test_warnings_hold_no_control_characters() -> None:
    response = answer(review.allow("u", warnings=("one\ntwo\tthree\x00", "täglich")))
    assert response["warnings"] == ["one two three ", "täglich"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"request": null}',
        b'{"request": {}}',
        b'{"request": {"uid": 7}}',
        b'{"request": {"uid": "u", "object": []}}',
        b'{"request": {"uid": "u", "kind": "Pod"}}',
        b'{"request": {"uid": "u", "dryRun": "yes"}}',
        b'{"request": {"uid": "\xff"}}',
        b'{"request": {"uid": "u", "object": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}}",
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_review_is_refused_in_one_sentence(body: bytes) -> None:
    with pytest.raises(errors.InvalidInput, match="the body is no AdmissionReview"):
        review.decode(body)


def test_what_matters_of_a_request_is_read_and_the_rest_skipped() -> None:
    body = {
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "userInfo": {"username": "x", "groups": []},
            "object": {"kind": "Pod"},
            "oldObject": None,
            "dryRun": True,
            "options": {},
        },
    }
    request = review.decode(json.dumps(body).encode())
    assert (request.uid, request.operation, request.kind.kind, request.dry_run) == ("u", "CREATE", "Pod", True)
    assert (request.object, request.old_object) == ({"kind": "Pod"}, None)
