"""What is an image reference, and what is wrong with a text that is none."""

import pytest

from images import errors, reference
from images.reference import Reference

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ubuntu", Reference("docker.io", "library/ubuntu")),
        ("ubuntu:22.04", Reference("docker.io", "library/ubuntu", "22.04")),
        ("docker.io/ubuntu", Reference("docker.io", "library/ubuntu")),
        ("index.docker.io/library/ubuntu", Reference("docker.io", "library/ubuntu")),
        ("rocm/vllm", Reference("docker.io", "rocm/vllm")),
        ("localhost/app", Reference("localhost", "app")),
        ("localhost:5000/app:v1", Reference("localhost:5000", "app", "v1")),
        ("127.0.0.1:5055/team/app", Reference("127.0.0.1:5055", "team/app")),
        ("[::1]:5000/app", Reference("[::1]:5000", "app")),
        ("Registry.Corp/team/app", Reference("registry.corp", "team/app")),
        ("host:5000/a/b/c:T_1.2-x", Reference("host:5000", "a/b/c", "T_1.2-x")),
        (f"nvcr.io/nvidia/pytorch:24.05-py3@{DIGEST}", Reference("nvcr.io", "nvidia/pytorch", "24.05-py3", DIGEST)),
        (f"app@{DIGEST}", Reference("docker.io", "library/app", None, DIGEST)),
        ("team/a_b__c--d.e", Reference("docker.io", "team/a_b__c--d.e")),
        ("app:1", Reference("docker.io", "library/app", "1")),
        ("rocm/vllm/rocm7.0.0_vllm_0.11.1", Reference("docker.io", "rocm/vllm/rocm7.0.0_vllm_0.11.1")),
    ],
)
def test_references_are_read_by_dockers_rules(text: str, expected: Reference) -> None:
    parsed = reference.parse(text)
    assert parsed == expected
    assert str(parsed) == text  # what the user wrote is kept


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("Repo/app", "'Repo' must be lower case"),
        ("repo/App:v1", "'App' must be lower case"),
        ("app:", "tag ''"),
        ("app:-v1", "tag '-v1'"),
        ("app:" + "x" * 129, "1 to 128"),
        ("app:v1:v2", "repository part 'app:v1'"),
        ("app@sha256:123", "digest 'sha256:123'"),
        ("app@" + DIGEST.upper(), "digest"),
        ("app@md5:" + "0" * 32, "digest"),
        ("a..b/app", "registry 'a..b'"),
        ("team/a..b", "'a..b'"),
        ("team//app", "repository part ''"),
        ("/app", "repository part ''"),
        ("team/-app", "'-app'"),
        (" app", "' app'"),
        ("app v1", "'app v1'"),
        ("host:99999/app", "port 99999"),
        ("host:0/app", "port 0"),
        ("[::zz]/app", "registry '[::zz]'"),
        ("[1:2]:5000/app", "registry '[1:2]:5000'"),
        ("host.example/", "repository part ''"),
        ("a" * 256, "at most 255"),
        ("0123456789abcdef" * 4, "image id"),
        ("x" * 5000, "5000 characters"),
        ("https://repo/app:v1", "'https:'"),
    ],
)
def test_a_text_that_is_none_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(errors.BadReference) as caught:
        reference.parse(text)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400


def test_the_same_image_is_equal_however_it_was_written() -> None:
    assert reference.parse("ubuntu:1") == reference.parse("docker.io/library/ubuntu:1")
    assert reference.parse("ubuntu:1") != reference.parse("ubuntu:2")


@pytest.mark.parametrize(
    ("text", "pinned"),
    [
        ("ubuntu:22.04", f"ubuntu@{DIGEST}"),
        ("docker.io/rocm/vllm:x", f"docker.io/rocm/vllm@{DIGEST}"),
        ("127.0.0.1:5055/team/app", f"127.0.0.1:5055/team/app@{DIGEST}"),
    ],
)
def test_pinning_keeps_the_name_and_drops_the_tag(text: str, pinned: str) -> None:
    assert reference.parse(text).pinned(DIGEST) == pinned


def test_a_tag_is_replaced_under_the_same_name() -> None:
    assert str(reference.parse("team/app:v1").with_tag("v1-amd")) == "team/app:v1-amd"
