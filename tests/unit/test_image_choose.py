"""Which tags are a logical image's variants."""

import pytest

from images import choose

APP = "docker.io/repo/app"


def options(tags: str, wanted: str | None, repository: str = APP) -> dict[str, list[str]]:
    found = choose.candidates(tags.split(), wanted, repository)
    return {vendor: [choice.tag for choice in choices] for vendor, choices in found.items()}


def chosen(tags: str, wanted: str | None, repository: str = APP) -> dict[str, str]:
    return {vendor: tags[0] for vendor, tags in options(tags, wanted, repository).items()}


@pytest.mark.parametrize(
    ("tags", "wanted", "expected"),
    [
        # The conventions.
        ("v1-nvidia v1-amd", "v1", {"nvidia": "v1-nvidia", "amd": "v1-amd"}),
        ("v1-cuda12.4 v1-rocm6.2", "v1", {"nvidia": "v1-cuda12.4", "amd": "v1-rocm6.2"}),
        ("v1-cu124 v1-rocm62 v1-xpu", "v1", {"nvidia": "v1-cu124", "amd": "v1-rocm62", "intel": "v1-xpu"}),
        ("v1-intel", "v1", {"intel": "v1-intel"}),
        ("nvidia-v1 amd-v1", "v1", {"nvidia": "nvidia-v1", "amd": "amd-v1"}),
        ("cuda-1.9 rocm-1.9", "1.9", {"nvidia": "cuda-1.9", "amd": "rocm-1.9"}),
        ("v1_nvidia v1_rocm6.2", "v1", {"nvidia": "v1_nvidia", "amd": "v1_rocm6.2"}),
        ("v1-gpu-nvidia-cuda-12 v1-gpu-hipblas", "v1", {"nvidia": "v1-gpu-nvidia-cuda-12", "amd": "v1-gpu-hipblas"}),
        ("v1-gpu-hipblas", "v1-gpu", {"amd": "v1-gpu-hipblas"}),
        ("v1-nvidia-dev v1-dev-amd", "v1-dev", {"nvidia": "v1-nvidia-dev", "amd": "v1-dev-amd"}),
        ("v1.2-cuda12.2", "v1.2", {"nvidia": "v1.2-cuda12.2"}),
        ("server-cuda server-rocm", "server", {"nvidia": "server-cuda", "amd": "server-rocm"}),
        # Other images.
        ("v10-nvidia v1.2-nvidia v1-dev-nvidia", "v1", {}),
        ("v1-nvidia-ubuntu22.04 v1-cuda12.4-cudnn9", "v1", {}),
        ("v1-cuda12.2", "v1.2", {}),
        ("v1-2-nvidia", "v1.2", {}),
        ("v1", "v1", {}),
        ("v1-amd64 v1-arm64 v1-gpu v1-cpu v1-vulkan", "v1", {}),
        ("v1-cuda-rocm v1-nvidia-cpu", "v1", {}),
        ("v1-cu130-amd64", "v1", {}),
        ("v1-trtllm", "v1", {}),
        ("v1-dev-nvidia-x", "v1-x", {}),
        # Untagged, which is latest.
        ("nvidia amd", None, {"nvidia": "nvidia", "amd": "amd"}),
        ("nvidia amd", "latest", {"nvidia": "nvidia", "amd": "amd"}),
        ("cuda rocm", None, {"nvidia": "cuda", "amd": "rocm"}),
        ("cuda12.4 rocm6.2 v1-nvidia", None, {"nvidia": "cuda12.4", "amd": "rocm6.2"}),
        ("latest-nvidia latest-amd", None, {"nvidia": "latest-nvidia", "amd": "latest-amd"}),
        ("latest-cuda12.4 nvidia", None, {"nvidia": "nvidia"}),
        ("v1-nvidia latest", None, {}),
        # Vendor-only tags for a version: the last resort, vendor by vendor.
        ("nvidia amd v2-nvidia", "v1", {"nvidia": "nvidia", "amd": "amd"}),
        ("nvidia amd v1-cuda11.8", "v1", {"nvidia": "v1-cuda11.8", "amd": "amd"}),
        ("nvidia v1-sm90", "v1", {"nvidia": "v1-sm90"}),
        ("latest-nvidia", "v1", {}),
        # Several of one vendor.
        ("v1-cuda12.4 v1-cuda12.10 v1-cuda11.8", "v1", {"nvidia": "v1-cuda12.10"}),
        ("v1-cuda12 v1-cuda12.4", "v1", {"nvidia": "v1-cuda12.4"}),
        ("v1-cuda13 v1-cuda12.8", "v1", {"nvidia": "v1-cuda13"}),
        ("v1-rocm711 v1-rocm62", "v1", {"amd": "v1-rocm62"}),
        ("v1-rocm711 v1-rocm", "v1", {"amd": "v1-rocm"}),
        ("v1-cuda13 v1-nvidia", "v1", {"nvidia": "v1-nvidia"}),
        ("v1-nvidia v1-cuda", "v1", {"nvidia": "v1-cuda"}),
        ("v1-amd amd-v1", "v1", {"amd": "amd-v1"}),
        ("v1-rocm7.2-mi30x v1-rocm6.2", "v1", {"amd": "v1-rocm6.2"}),
        ("v1-rocm6.2-mi30x v1-rocm7.2-mi35x", "v1", {"amd": "v1-rocm7.2-mi35x"}),
        ("v1-tensorrt v1-cuda12.4 v1-openvino v1-xpu", "v1", {"nvidia": "v1-cuda12.4", "intel": "v1-xpu"}),
        ("v1-tensorrt", "v1", {"nvidia": "v1-tensorrt"}),
        # What is no image.
        (f"sha256-{'0' * 64} sha256-{'0' * 64}.sig v1-nvidia.sig v1-nvidia.sbom", "v1", {}),
        # The image that was asked for names its vendor.
        ("v1-amd v1-nvidia v1-amd-nvidia", "v1-amd", {"amd": "v1-amd"}),
        ("amd nvidia", "amd", {"amd": "amd"}),
        ("v1-nvidia", "v1-amd", {}),
        ("v1-cpu v1-cpu-nvidia", "v1-cpu", {}),
        ("v1-vulkan v1-nvidia", "v1-vulkan", {}),
        ("", "v1", {}),
    ],
)
def test_a_tag_is_a_variant_when_only_vendor_words_are_added(
    tags: str, wanted: str | None, expected: dict[str, str]
) -> None:
    assert chosen(tags, wanted) == expected
    assert chosen(" ".join(reversed(tags.split())), wanted) == expected


@pytest.mark.parametrize(
    ("tags", "wanted", "repository", "expected"),
    [
        ("0.11.11 0.11.11-rocm", "0.11.11", "docker.io/ollama/ollama", {"nvidia": "0.11.11", "amd": "0.11.11-rocm"}),
        ("latest rocm", None, "docker.io/ollama/ollama", {"nvidia": "latest", "amd": "rocm"}),
        (
            "server server-cuda server-rocm server-intel server-vulkan",
            "server",
            "ghcr.io/ggml-org/llama.cpp",
            {"nvidia": "server-cuda", "amd": "server-rocm", "intel": "server-intel"},
        ),
        ("v0.5.12 v0.5.12-cu130", "v0.5.12", "docker.io/lmsysorg/sglang", {"nvidia": "v0.5.12"}),
        ("rocm6.2_a rocm6.2_b", "rocm6.2_a", "docker.io/rocm/vllm", {"amd": "rocm6.2_a"}),
        ("v0.8 v0.9", "v0.8", "docker.io/vllm/vllm-openai-rocm", {"amd": "v0.8"}),
        ("24.05-py3", "24.05-py3", "nvcr.io/nvidia/pytorch", {"nvidia": "24.05-py3"}),
        # The repository's name is a weaker word than its tags where the tag asked for does not exist.
        ("v1-nvidia v1-amd", "v1", "reg.corp/nvidia/app", {"nvidia": "v1-nvidia", "amd": "v1-amd"}),
        ("v1 v1-amd", "v1", "reg.corp/nvidia/app", {"nvidia": "v1"}),
        ("2.35.0-py311 2.35.0-py311-gpu", "2.35.0-py311", "docker.io/rayproject/ray", {"nvidia": "2.35.0-py311-gpu"}),
    ],
)
def test_repositories_that_mean_something_by_their_plain_tags(
    tags: str, wanted: str | None, repository: str, expected: dict[str, str]
) -> None:
    assert chosen(tags, wanted, repository) == expected


@pytest.mark.parametrize(
    ("tags", "wanted", "expected"),
    [
        # Each form where every vendor has it, the preferred one first.
        ("latest-nvidia latest-amd nvidia", "latest", {"nvidia": "latest-nvidia", "amd": "latest-amd"}),
        ("latest-nvidia latest-amd nvidia", None, {"nvidia": "latest-nvidia", "amd": "latest-amd"}),
        ("latest-nvidia nvidia amd", "latest", {"nvidia": "nvidia", "amd": "amd"}),
        ("latest-nvidia nvidia amd", None, {"nvidia": "nvidia", "amd": "amd"}),
        ("latest-nvidia latest-amd nvidia amd", "latest", {"nvidia": "latest-nvidia", "amd": "latest-amd"}),
        ("latest-nvidia latest-amd nvidia amd", None, {"nvidia": "nvidia", "amd": "amd"}),
        ("nvidia-latest cuda12.4", "latest", {"nvidia": "nvidia-latest"}),
        ("latest-cuda12.4 nvidia", "latest", {"nvidia": "latest-cuda12.4"}),
        ("latest-sm90 nvidia", "latest", {"nvidia": "latest-sm90"}),
        # Neither: vendor by vendor.
        ("nvidia latest-amd", "latest", {"nvidia": "nvidia", "amd": "latest-amd"}),
        (
            "nvidia latest-nvidia latest-amd xpu",
            "latest",
            {"nvidia": "latest-nvidia", "amd": "latest-amd", "intel": "xpu"},
        ),
        ("nvidia latest-nvidia latest-amd xpu", None, {"nvidia": "nvidia", "amd": "latest-amd", "intel": "xpu"}),
    ],
)
def test_vendors_get_the_same_form_of_latest(tags: str, wanted: str | None, expected: dict[str, str]) -> None:
    assert chosen(tags, wanted) == expected
    assert chosen(" ".join(reversed(tags.split())), wanted) == expected


def test_a_publishers_plain_latest_counts_as_latest() -> None:
    repository = "docker.io/ollama/ollama"
    both = {"nvidia": "latest", "amd": "latest-rocm"}
    assert chosen("latest latest-rocm rocm", "latest", repository) == both
    assert chosen("latest latest-rocm rocm", None, repository) == both
    assert chosen("latest rocm cuda", None, repository) == {"nvidia": "cuda", "amd": "rocm"}


@pytest.mark.parametrize(
    ("tags", "wanted", "expected"),
    [
        ("v1-rocm6.2-gfx942 v1-rocm6.2-gfx90a", "v1", {"amd": ["v1-rocm6.2-gfx90a", "v1-rocm6.2-gfx942"]}),
        ("v1-sm86 v1-sm90 v1-amd", "v1", {"nvidia": ["v1-sm90", "v1-sm86"], "amd": ["v1-amd"]}),
        # The best for each set of targets, however it is written.
        ("v1-rocm6.2-gfx942 v1-rocm7.2-mi30x v1-gfx90a", "v1", {"amd": ["v1-gfx90a", "v1-rocm7.2-mi30x"]}),
        ("v1-gfx942-gfx90a v1-gfx90a-gfx942", "v1", {"amd": ["v1-gfx90a-gfx942"]}),
        # What is made for a device comes before what also runs on it.
        ("v1-sm80 v1-sm90 v1-sm86 v1-sm90a", "v1", {"nvidia": ["v1-sm90a", "v1-sm90", "v1-sm86", "v1-sm80"]}),
        ("v1-sm80-sm86 v1-sm80 v1-sm86", "v1", {"nvidia": ["v1-sm86", "v1-sm80-sm86", "v1-sm80"]}),
        ("v1-gfx120X v1-gfx1201", "v1", {"amd": ["v1-gfx1201", "v1-gfx120X"]}),
        ("v1-cuda12.4-sm86 v1-cuda12.8-sm80", "v1", {"nvidia": ["v1-cuda12.8-sm80", "v1-cuda12.4-sm86"]}),
        # Not needed beside one for any device, nor mixed with another form, which may be another build.
        ("v1-rocm6.2-gfx942 v1-rocm6.2-gfx90a v1-rocm6.1", "v1", {"amd": ["v1-rocm6.1"]}),
        ("v1-sm86 v1-sm90 nvidia", "v1", {"nvidia": ["v1-sm90", "v1-sm86"]}),
        ("v1-sm86 sm90", "v1", {"nvidia": ["v1-sm86"]}),
        ("sm86 sm90", "v1", {"nvidia": ["sm90", "sm86"]}),
        ("sm86 sm90 latest-sm80", None, {"nvidia": ["sm90", "sm86"]}),
        # The one that was asked for.
        ("v1-sm86 v1-sm90", "v1-sm86", {"nvidia": ["v1-sm86"]}),
    ],
)
def test_without_one_for_any_device_there_is_one_for_each_set_of_targets(
    tags: str, wanted: str | None, expected: dict[str, list[str]]
) -> None:
    assert options(tags, wanted) == expected
    assert options(" ".join(reversed(tags.split())), wanted) == expected


def test_a_vendor_has_no_more_variants_than_are_worth_asking_for() -> None:
    tags = [f"v1-gfx9{index:02x}" for index in range(40)]
    assert options(" ".join(tags), "v1") == {"amd": tags[: choose.MAX_OPTIONS]}


def test_the_reasons_say_why_this_tag_and_not_another() -> None:
    def why(tags: str, wanted: str | None, vendor: str = "nvidia") -> str:
        found = choose.candidates(tags.split(), wanted, APP)
        return next(choices[0].why for name, choices in found.items() if name == vendor)

    assert why("v1-nvidia", "v1") == "v1-nvidia is NVIDIA's, the only one for v1"
    assert why("v1-cuda12.4 v1-cuda12.10 v1-cuda9", "v1") == (
        "v1-cuda12.10 is NVIDIA's (CUDA 12.10), taken before v1-cuda12.4 and 1 more: the newest runtime"
    )
    assert why("v1-cuda12.4 v1-nvidia", "v1").endswith("the publisher's default, without a runtime version")
    assert why("nvidia", "v1") == (
        "nvidia is NVIDIA's, but no tag v1-… for NVIDIA exists and this one names no version: "
        "nothing says that it is v1"
    )
    assert why("v1-rocm7.2-mi30x", "v1", "amd") == (
        "v1-rocm7.2-mi30x is AMD's (ROCm 7.2) for gfx942 only, the only one for v1"
    )
    assert why("v1-gfx942 v1-gfx90a", "v1", "amd") == (
        "v1-gfx90a is AMD's for gfx90a only, the only one for v1 with these targets"
    )
    assert why("v1-sm90 v1-cuda12.4-sm90 v1-sm86", "v1") == (
        "v1-sm90 is NVIDIA's for sm90 only, taken before v1-cuda12.4-sm90: "
        "the publisher's default, without a runtime version"
    )
    assert why("v1-sm90 v1-sm86 nvidia", "v1").endswith("taken before nvidia: the version that was asked for")
    assert why("nvidia", None) == "nvidia is NVIDIA's, the only one for the untagged image"
    assert why("nvidia latest-nvidia", None).endswith("taken before latest-nvidia: asked for without a tag")
    assert why("nvidia latest-nvidia", "latest").endswith("taken before nvidia: latest, as it was asked for")
    assert why("nvidia latest-nvidia amd", "latest").endswith("before latest-nvidia: the form that every vendor has")
    assert why("amd", "amd", "amd") == ("the tag asked for is AMD's itself, so no other vendor's image was looked for")


def test_a_choice_for_some_devices_says_which() -> None:
    assert choose.candidates(["v1-mi30x"], "v1", APP)["amd"][0].targets == ("gfx942",)
    assert choose.candidates(["v1-amd", "v1-mi30x"], "v1", APP)["amd"][0].targets == ()
