"""The registry that other tests rely on is real, and holds what is pushed to it."""

from __future__ import annotations

import hashlib

import httpx
import oci
import pytest

pytestmark = pytest.mark.registry


def get(registry: oci.OciRegistry, path: str, accept: str = oci.ACCEPT) -> httpx.Response:
    return httpx.get(f"http://{registry.host}/v2/{path}", headers={"Accept": accept}, trust_env=False)


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_an_image_comes_back_as_it_was_pushed(oci_registry: oci.OciRegistry, media: oci.Media) -> None:
    repository = f"round-trip/{media}"
    environment = {"CUDA_VERSION": "12.4.1", "NVIDIA_REQUIRE_CUDA": "cuda>=12.4"}
    digest = oci_registry.push(repository, "nvidia", environment, media, "linux/arm64/v8", labels={"a": "b"})
    answer = get(oci_registry, f"{repository}/manifests/nvidia")
    assert answer.headers["docker-content-digest"] == digest
    assert digest == f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    assert answer.headers["content-type"] == oci.MEDIA[media].manifest
    config = get(oci_registry, f"{repository}/blobs/{answer.json()['config']['digest']}").json()
    assert config["config"]["Env"] == ["CUDA_VERSION=12.4.1", "NVIDIA_REQUIRE_CUDA=cuda>=12.4"]
    assert config["config"]["Labels"] == {"a": "b"}
    assert (config["os"], config["architecture"], config["variant"]) == ("linux", "arm64", "v8")


def test_the_tags_are_those_that_were_pushed_in_whatever_order(oci_registry: oci.OciRegistry) -> None:
    for tag in ("nvidia", "amd", "nvidia-base", "amd-base"):
        oci_registry.push("tags", tag)
    assert sorted(get(oci_registry, "tags/tags/list").json()["tags"]) == ["amd", "amd-base", "nvidia", "nvidia-base"]


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_an_index_names_its_images_and_their_platforms(oci_registry: oci.OciRegistry, media: oci.Media) -> None:
    repository = f"indexed/{media}"
    images = [oci_registry.push(repository, None, media=media, platform=f"linux/{arch}") for arch in ("amd64", "arm64")]
    digest = oci_registry.push_index(repository, "multi", images, media)
    answer = get(oci_registry, f"{repository}/manifests/multi")
    assert answer.headers["docker-content-digest"] == digest
    assert answer.headers["content-type"] == oci.MEDIA[media].index
    assert [entry["digest"] for entry in answer.json()["manifests"]] == images
    assert [entry["platform"]["architecture"] for entry in answer.json()["manifests"]] == ["amd64", "arm64"]
    assert get(oci_registry, f"{repository}/tags/list").json()["tags"] == ["multi"]


def test_the_same_image_has_the_same_digest(oci_registry: oci.OciRegistry) -> None:
    assert oci_registry.push("same", "a", {"X": "1"}) == oci_registry.push("same", "a", {"X": "1"})
    assert oci_registry.push("same", "a", {"X": "1"}) != oci_registry.push("same", "a", {"X": "2"})


def test_an_oci_image_is_hidden_from_who_does_not_accept_it(oci_registry: oci.OciRegistry) -> None:
    """Debian's registry answers 404 without the right Accept: a client that forgets the header fails here."""
    oci_registry.push("accepting", "a")
    assert get(oci_registry, "accepting/manifests/a", accept="*/*").status_code == 404


def test_a_deleted_image_is_gone(oci_registry: oci.OciRegistry) -> None:
    digest = oci_registry.push("deleted", "a")
    oci_registry.delete("deleted", digest)
    assert get(oci_registry, "deleted/manifests/a").status_code == 404


def test_after_an_outage_the_images_are_where_they_were(oci_registry: oci.OciRegistry) -> None:
    digest = oci_registry.push("outage", "a")
    oci_registry.stop()
    try:
        with pytest.raises(httpx.ConnectError):
            get(oci_registry, "outage/manifests/a")
    finally:
        oci_registry.start()
    assert get(oci_registry, "outage/manifests/a").headers["docker-content-digest"] == digest
