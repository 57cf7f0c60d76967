"""What published tags say: right or undecided, never wrong."""

import re

import pytest

from images import reference, tags

# reference, vendor, runtime, version, targets
PUBLISHED = """
nvidia/cuda:12.4.1-cudnn-runtime-ubuntu22.04                      nvidia cuda 12.4.1
nvidia/cuda:13.0.2-runtime-ubuntu24.04                            nvidia cuda 13.0.2
mirror.corp/hub/nvidia/cuda:12.4.1-base-ubuntu22.04               nvidia cuda 12.4.1
rocm/dev-ubuntu-22.04:6.3.2-complete                              amd rocm 6.3.2
rocm/dev-ubuntu-24.04:7.2.1-complete                              amd rocm 7.2.1
rocm/dev-ubuntu-24.04:7.14.0-full                                 amd rocm 7.14.0
nvcr.io/nvidia/pytorch:24.05-py3                                  nvidia cuda -
nvcr.io/nvidia/tritonserver:24.01-py3                             nvidia cuda -
nvcr.io/nvidia/tritonserver:24.01-py3-sdk                         nvidia cuda -
nvcr.io/nvidia/tritonserver:25.04-trtllm-python-py3               nvidia cuda -
nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc18                     nvidia cuda -
nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.0-dev.1-cuda13          nvidia cuda 13
rocm/pytorch:rocm6.2.1_ubuntu22.04_py3.10_pytorch_release_2.1.2   amd rocm 6.2.1
rocm/tensorflow:rocm6.2.1-py3.9-tf2.16.1-dev                      amd rocm 6.2.1
rocm/jax:rocm7.2.4-jax0.8.2-py3.12                                amd rocm 7.2.4
rocm/jax:rocm7.14-jax0.10.0-py3.14                                amd rocm 7.14
rocm/jax:rocm10.1-jax0.11.1-py3.14                                amd rocm 10.1
rocm/vllm:rocm6.4.1_vllm_0.10.1_20250909                          amd rocm 6.4.1
rocm/vllm:rocm6.3.1_instinct_vllm0.8.3_20250415                   amd rocm 6.3.1
rocm/vllm:rocm6.2_mi300_ubuntu20.04_py3.9_vllm_0.6.4              amd rocm 6.2 gfx942
rocm/vllm-dev:v0.14.0_amd_dev                                     amd rocm -
vllm/vllm-openai:v0.25.0                                          nvidia cuda -
vllm/vllm-openai:v0.21.0-cu129                                    nvidia cuda 12.9
vllm/vllm-openai:nightly-dev-x86_64-cu13.0.1-0a1b2c3d4e5f         nvidia cuda 13.0.1
vllm/vllm-openai:kimi-k3-x86_64-cu130                             nvidia cuda 13.0
vllm/vllm-openai-rocm:v0.22.0                                     amd rocm -
vllm/vllm-openai-cpu:v0.22.0                                      cpu - -
vllm/vllm-openai-xpu:v0.22.0                                      intel oneapi -
vllm/vllm-tpu:nightly                                             other - -
lmsysorg/sglang:v0.5.12                                           nvidia cuda -
lmsysorg/sglang:v0.5.12-cu130                                     nvidia cuda 13.0
lmsysorg/sglang:v0.5.12-cu129                                     nvidia cuda 12.9
lmsysorg/sglang:v0.5.12-cu130-amd64                               nvidia cuda 13.0
lmsysorg/sglang:v0.5.12-rocm720-mi30x                             amd rocm 7.2.0 gfx942
lmsysorg/sglang:v0.5.12-rocm700-mi35x                             amd rocm 7.0.0 gfx950
lmsysorg/sglang:rocm700-mi30x-latest                              amd rocm 7.0.0 gfx942
lmsysorg/sglang-rocm:v0.5.12                                      amd rocm -
rocm/sgl-dev:sglang-0.5.9-rocm720-mi35x-mori-0227-2               amd rocm 7.2.0 gfx950
rocm/atom:rocm7.2.2_ubuntu24.04_py3.12_pytorch_release_2.10.0_atom0.1.2.post  amd rocm 7.2.2
ghcr.io/huggingface/text-generation-inference:3.3.5               nvidia cuda -
ghcr.io/huggingface/text-generation-inference:latest              nvidia cuda -
ghcr.io/huggingface/text-generation-inference:latest-trtllm       nvidia cuda -
ghcr.io/huggingface/text-generation-inference:3.3.5-rocm          amd rocm -
ghcr.io/huggingface/text-generation-inference:3.3.5-intel-xpu     intel oneapi -
ghcr.io/huggingface/text-generation-inference:3.3.5-intel-cpu     cpu - -
ghcr.io/huggingface/text-generation-inference:3.3.5-gaudi         intel - - gaudi
ghcr.io/huggingface/text-generation-inference:3.3.5-neuron        other - -
ghcr.io/huggingface/text-embeddings-inference:0.7                 nvidia cuda - sm80
ghcr.io/huggingface/text-embeddings-inference:86-0.7              nvidia cuda - sm86
ghcr.io/huggingface/text-embeddings-inference:89-0.7              nvidia cuda - sm89
ghcr.io/huggingface/text-embeddings-inference:turing-0.7          nvidia cuda - sm75
ghcr.io/huggingface/text-embeddings-inference:hopper-0.7          nvidia cuda - sm90
ghcr.io/huggingface/text-embeddings-inference:cpu-1.8             cpu - -
ghcr.io/huggingface/text-embeddings-inference:cuda-1.9            nvidia cuda -
ollama/ollama:latest                                              nvidia cuda -
ollama/ollama:0.11.11                                             nvidia cuda -
ollama/ollama:rocm                                                amd rocm -
ollama/ollama:0.11.11-rocm                                        amd rocm -
ghcr.io/ggml-org/llama.cpp:server                                 cpu - -
ghcr.io/ggml-org/llama.cpp:server-cuda                            nvidia cuda -
ghcr.io/ggml-org/llama.cpp:server-cuda13                          nvidia cuda 13
ghcr.io/ggml-org/llama.cpp:full-rocm                              amd rocm -
ghcr.io/ggml-org/llama.cpp:light-intel                            intel - -
ghcr.io/ggml-org/llama.cpp:server-vulkan                          other - -
ghcr.io/ggml-org/llama.cpp:server-musa                            other - -
ghcr.io/ggml-org/llama.cpp:server-openvino                        intel openvino -
localai/localai:latest                                            cpu - -
localai/localai:latest-gpu-nvidia-cuda-12                         nvidia cuda 12
localai/localai:latest-gpu-nvidia-cuda-13                         nvidia cuda 13
localai/localai:latest-nvidia-l4t-arm64-cuda-13                   nvidia cuda 13 l4t
localai/localai:latest-gpu-hipblas                                amd rocm -
localai/localai:latest-gpu-intel                                  intel - -
localai/localai:latest-gpu-vulkan                                 other - -
quay.io/go-skynet/local-ai-backends:latest-gpu-nvidia-cuda-12-vllm       nvidia cuda 12
quay.io/go-skynet/local-ai-backends:latest-gpu-rocm-hipblas-llama-cpp    amd rocm -
quay.io/go-skynet/local-ai-backends:latest-metal-darwin-arm64-llama-cpp  other - -
quay.io/go-skynet/local-ai-backends:latest-cpu-llama-cpp                 cpu - -
quay.io/ramalama/cuda:0.12                                        nvidia cuda -
quay.io/ramalama/rocm:0.12                                        amd rocm -
quay.io/ramalama/intel-gpu:0.12                                   intel oneapi -
quay.io/ramalama/asahi:0.12                                       other - -
quay.io/ramalama/cann:0.12                                        other - -
quay.io/ramalama/musa:0.12                                        other - -
quay.io/ramalama/openvino:0.12                                    intel openvino -
quay.io/ramalama/ramalama:0.12                                    - - -
docker/model-runner:latest                                        cpu - -
docker/model-runner:latest-cuda                                   nvidia cuda -
docker/model-runner:latest-sglang-cuda                            nvidia cuda -
docker/model-runner:latest-rocm                                   amd rocm -
gpustack/runner:cuda12.8-vllm0.17.1                               nvidia cuda 12.8
gpustack/runner:rocm7.2-vllm0.25.0                                amd rocm 7.2
gpustack/runner:cann8.1-910b-vllm0.9.2                            other - -
ghcr.io/llm-d/llm-d-cuda:v0.9.0                                   nvidia cuda -
ghcr.io/llm-d/llm-d-rocm:v0.9.0                                   amd rocm -
ghcr.io/llm-d/llm-d-xpu:v0.9.0                                    intel oneapi -
quay.io/modh/vllm:rhoai-2.24-cuda                                 nvidia cuda -
quay.io/modh/vllm:rhoai-2.24-rocm                                 amd rocm -
quay.io/modh/ray:2.35.0-py311-cu121                               nvidia cuda 12.1
quay.io/modh/ray:2.35.0-py311-rocm62                              amd rocm 6.2
quay.io/modh/training:py311-cuda121-torch241                      nvidia cuda 12.1
rayproject/ray:2.35.0-py311-gpu                                   nvidia cuda -
rayproject/ray:2.35.0-py311-cu121                                 nvidia cuda 12.1
rayproject/ray:2.35.0-py311-cpu                                   cpu - -
rayproject/ray:2.35.0-py311                                       cpu - -
rayproject/ray-ml:2.35.0                                          nvidia cuda -
pytorch/pytorch:2.7.1-cuda12.8-cudnn9-devel                       nvidia cuda 12.8
pytorch/pytorch:2.0.1-cu118-devel                                 nvidia cuda 11.8
ghcr.io/nvidia/jax:jax-2024-09-08                                 nvidia - -
ghcr.io/nvidia/jax:maxtext-2026-03-05                             nvidia - -
kserve/huggingfaceserver:v0.15.0-gpu                              nvidia cuda -
kserve/huggingfaceserver:v0.15.0                                  cpu - -
michaelf34/infinity:0.0.77                                        nvidia cuda -
michaelf34/infinity:0.0.77-rocm                                   amd rocm -
michaelf34/infinity:0.0.77-cpu                                    cpu - -
ghcr.io/immich-app/immich-machine-learning:release-cuda           nvidia cuda -
ghcr.io/immich-app/immich-machine-learning:release-rocm           amd rocm -
ghcr.io/immich-app/immich-machine-learning:release-openvino       intel openvino -
ghcr.io/immich-app/immich-machine-learning:release-armnn          other - -
ghcr.io/immich-app/immich-machine-learning:release-rknn           other - -
ghcr.io/blakeblackshear/frigate:stable-tensorrt                   nvidia cuda -
ghcr.io/blakeblackshear/frigate:stable-rocm                       amd rocm -
ghcr.io/blakeblackshear/frigate:stable-standard-arm64             - - -
mixa3607/pytorch-gfx906:v2.10.0-rocm-7.2.0                        amd rocm 7.2.0 gfx906
nalanzeyu/vllm-gfx906:v0.11.2-rocm6.3                             amd rocm 6.3 gfx906
ghcr.io/amdresearch/auplc-cv:v1.0-rocm-gfx120X                    amd rocm - gfx120X
lazymio/vllm-backport:latest-sm86                                 nvidia - - sm86
lazymio/vllm-backport:latest-sm89                                 nvidia - - sm89
yanwk/comfyui-boot:rocm7-20260601                                 amd rocm 7
"""

# Words that look like a vendor and are none, and numbers that can be read in two ways.
TRAPS = """
team/app:1.2-amd64                  - - -
team/app:1.2-arm64                  - - -
team/app:x86_64                     - - -
team/app:cuda-rocm                  - - -
team/app:v1-nvidia-amd              - - -
team/app:v1-cuda12-cpu              - - -
team/app:v1-no-gpu                  - - -
team/app:v1-no-cuda                 - - -
team/app:v1-without-rocm            - - -
team/app:v1-gpu                     - - -
team/app:hip-hop                    - - -
team/app:metal-gear                 - - -
team/app:ampere                     - - -
team/app:barracuda                  - - -
team/app:camd                       - - -
team/app:intelligent                - - -
team/app:cu                         - - -
team/app:jpeg                       - - -
reg/ada/app:v1                      - - -
team/hopper:v1                      - - -
intel/app:v1                        - - -
team/intelligence:v1                - - -
team/amd64:v1                       - - -
registry.amd.corp/team/app:v1       - - -
nvidia.corp:5000/team/app:v1        - - -
nvidia-team/app:v1                  - - -
team/cpu-manager:v1                 - - -
reg/vllm/vllm-openai:v0.25.0        - - -
vllm/vllm-openai:custom             - - -
team/cuda-rocm-bench:v1             - - -
team/app:v1-nvidia                  nvidia - -
team/app:v1-amd                     amd - -
team/app:V1-NVIDIA                  nvidia - -
team/app:cu118                      nvidia cuda 11.8
team/app:cu13                       nvidia cuda 13
team/app:cu130                      nvidia cuda 13.0
team/app:cu92                       nvidia cuda 9.2
team/app:cuda9                      nvidia cuda 9
team/app:cuda12                     nvidia cuda 12
team/app:cuda12.10                  nvidia cuda 12.10
team/app:v1-cuda_12.4               nvidia cuda 12.4
team/app:cuda1210                   nvidia cuda -
team/app:cuda-12.4                  nvidia cuda -
team/app:cuda12.8rc1                nvidia cuda -
team/app:cuda12.4-cu121             nvidia cuda -
team/app:cuda12-cu124               nvidia cuda 12.4
team/app:v1-cuda-2024               nvidia cuda -
team/app:rocm62                     amd rocm 6.2
team/app:rocm630                    amd rocm 6.3.0
team/app:rocm612                    amd rocm 6.1.2
team/app:rocm720                    amd rocm 7.2.0
team/app:rocm711                    amd rocm -
team/app:rocm7.14                   amd rocm 7.14
team/app:rocm10.1                   amd rocm 10.1
team/app:rocm1010                   amd rocm -
team/app:rocm10                     amd rocm -
team/app:rocm7.2rc1                 amd rocm -
team/app:rocm-6.2                   amd rocm -
team/app:v1-gfx90a                  amd - - gfx90a
team/app:v1-gfx110x                 amd - - gfx110X
team/app:v1-gfx90a-gfx942           amd - - gfx90a,gfx942
team/app:v1-mi200                   amd - - gfx90a
team/app:v1-mi300x                  amd - - gfx942
team/app:v1-mi355x                  amd - - gfx950
team/app:v1-mi6                     - - -
team/app:v1-sm_90a                  nvidia - - sm90a
team/app:v1-sm                      - - -
team/app-cuda12.4:v1                nvidia cuda 12.4
team/app-cuda12.4:v1-rocm6.2        amd rocm 6.2
paddlepaddle/paddle:3.0-xpu         other - -
"""


def rows(table: str) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in table.strip().splitlines()]


@pytest.mark.parametrize("row", rows(PUBLISHED) + rows(TRAPS), ids=lambda row: row[0])
def test_a_name_is_read_as_its_publisher_means_it(row: tuple[str, ...]) -> None:
    text, vendor, runtime, version, *targets = row
    read = tags.read(reference.parse(text))
    shown = (read.vendor or "-", read.runtime or "-", read.version or "-", ",".join(read.targets))
    assert shown == (vendor, runtime, version, targets[0] if targets else "")


@pytest.mark.parametrize(
    ("text", "flavour"),
    [
        ("nvidia/cuda:12.4.1-cudnn-runtime-ubuntu22.04", "cudnn-runtime-ubuntu22.04"),
        ("pytorch/pytorch:2.7.1-cuda12.8-cudnn9-devel", "cudnn9-devel"),
        ("nvcr.io/nvidia/pytorch:24.05-py3", "py3"),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda13", "server"),
        ("docker/model-runner:latest-sglang-cuda", "sglang"),
        ("lmsysorg/sglang:v0.5.12-cu130-amd64", "amd64"),
        ("team/app:v1-nvidia", None),
        ("team/app:latest", None),
        ("team/app:dev", "dev"),
        ("team/app:v1-gpu-nvidia-cuda-12-vllm", "vllm"),
    ],
)
def test_the_flavour_is_what_else_the_tag_says(text: str, flavour: str | None) -> None:
    assert tags.read(reference.parse(text)).flavour == flavour


def test_a_digest_alone_does_not_tell_which_plain_tag_it_had() -> None:
    digest = "sha256:" + "0" * 64
    assert tags.read(reference.parse("ollama/ollama")).vendor == "nvidia"
    assert tags.read(reference.parse(f"ollama/ollama@{digest}")).vendor is None
    assert tags.read(reference.parse(f"ollama/ollama:0.11.11-rocm@{digest}")).vendor == "amd"
    assert tags.read(reference.parse(f"rocm/vllm@{digest}")).vendor == "amd"


@pytest.mark.parametrize(
    ("text", "basis"),
    [
        ("team/app:v1-amd", "tag"),
        ("rocm/vllm:x", "repository"),
        ("ollama/ollama:0.11.11", "default"),
        ("team/app:v1", None),
    ],
)
def test_it_is_told_where_the_vendor_was_read(text: str, basis: str | None) -> None:
    assert tags.read(reference.parse(text)).basis == basis


@pytest.mark.parametrize(
    ("targets", "device", "covered"),
    [
        ((), "gfx942", True),
        (("gfx942",), "gfx942", True),
        (("gfx942",), "gfx950", False),
        (("gfx942", "gfx950"), "gfx950", True),
        (("gfx120X",), "gfx1201", True),
        (("gfx120X",), "gfx1100", False),
        (("gfx94X",), "gfx942", True),
        (("gfx94X",), "gfx9420", False),
        (("sm86",), "8.6", True),
        (("sm86",), "8.9", True),
        (("sm86",), "8.0", False),
        (("sm86",), "9.0", False),
        (("sm90a",), "9.0", True),
        (("sm100a",), "10.3", False),
        (("sm120",), "12.0", True),
        (("sm80",), "gfx942", False),
        (("gaudi",), "8.6", False),
        (("l4t",), "8.7", False),
    ],
)
def test_targets_say_on_which_devices_an_image_runs(targets: tuple[str, ...], device: str, covered: bool) -> None:
    assert tags.covers(targets, device) is covered


def test_every_row_of_the_table_is_told_where_it_comes_from_and_can_match() -> None:
    every = [*tags.TABLE.tokens, *(row for family in tags.TABLE.families for row in family.tokens)]
    for row in every:
        assert row.seen, row.match
        assert re.compile(row.match).groups <= 3, row.match
        assert re.match(row.match, "") is None, row.match
        assert row.part == "vendor" if row.vendor and row.match != "trtllm|tensorrt[-_]?llm" else row.part != "vendor"
    assert all(family.seen for family in tags.TABLE.families)
