"""Headers by which registries ask for credentials and point to the next page."""

import time

import pytest

from images import challenges


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="Registry Realm"'], {"basic": {"realm": "Registry Realm"}}),
        (
            ['Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"'],
            {
                "bearer": {
                    "realm": "https://auth.docker.io/token",
                    "service": "registry.docker.io",
                    "scope": "repository:a/b:pull",
                }
            },
        ),
        (
            ['bearer realm="a" , SERVICE = b', "Basic realm=c"],
            {"bearer": {"realm": "a", "service": "b"}, "basic": {"realm": "c"}},
        ),
        (
            ['Negotiate, Basic realm="x, y", Bearer realm="z"'],
            {"negotiate": {}, "basic": {"realm": "x, y"}, "bearer": {"realm": "z"}},
        ),
        (['Basic realm="say \\"hi\\""'], {"basic": {"realm": 'say "hi"'}}),
        (["Basic"], {"basic": {}}),
        ([""], {}),
        ([], {}),
    ],
)
def test_challenges_are_read_by_scheme(headers: list[str], expected: dict[str, dict[str, str]]) -> None:
    assert challenges.parse(headers) == expected


@pytest.mark.parametrize("text", ["a" * 200_000, "a " * 100_000, 'a="' * 50_000, "a=b," * 50_000 + '"', "<" * 100_000])
def test_a_hostile_header_is_read_quickly(text: str) -> None:
    start = time.perf_counter()
    challenges.parse([text])
    challenges.next_link(text)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("asked", "scope"),
    [
        ("repository:team/app:pull", "repository:team/app:pull"),
        ("repository:team/app:metadata_read", "repository:team/app:metadata_read"),
        ("repository:team/app:pull,push", "repository:team/app:pull"),
        ("repository:team/app:*", "repository:team/app:pull"),
        ("repository:other/app:pull", "repository:team/app:pull"),
        ("repository:team/app:pull repository:other/app:pull", "repository:team/app:pull"),
        ("registry:catalog:*", "repository:team/app:pull"),
        (None, "repository:team/app:pull"),
    ],
)
def test_a_token_is_asked_for_reading_this_repository_only(asked: str | None, scope: str) -> None:
    assert challenges.pull_scope(asked, "team/app") == scope


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ('</v2/a/tags/list?last=b&n=2>; rel="next"', "/v2/a/tags/list?last=b&n=2"),
        ("<next>; rel=next", "next"),
        ('<first>; rel="first", <second>; title="x"; rel="next"', "second"),
        ('<first>; rel="prev"', None),
        ("nonsense", None),
    ],
)
def test_the_next_page_is_the_link_that_says_so(header: str, target: str | None) -> None:
    assert challenges.next_link(header) == target


def test_basic_credentials_may_be_any_text() -> None:
    assert challenges.basic("Aladdin", "open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert challenges.basic("ü", "ß").isascii()
