"""A model's shape gives the memory it needs; the formulas agree with what vLLM published."""

from typing import Any

import pytest

from capability_db import errors, models

BUILTIN = models.Profiles.builtin()
GIB = 2**30


def profile(model_id: str) -> models.ModelProfile:
    found = BUILTIN.get(model_id)
    assert found is not None
    return found


def made(**figures: Any) -> models.ModelProfile:
    """A profile of a dense LLM with the figures given changed; None takes one away."""
    shape: dict[str, Any] = {
        "id": "made",
        "kind": "llm",
        "precision": "bf16",
        "parameters": 8_000_000_000,
        "layers": 32,
        "hidden_size": 4096,
        "attention_heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "ffn_size": 14336,
        "vocabulary": 32000,
        "max_context": 8192,
        "provenance": {"confidence": "known"},
    }
    stated = {key: value for key, value in {**shape, **figures}.items() if value is not None}
    return models.ModelProfile.model_validate(stated)


# --- The published block counts ---------------------------------------------------------------------------------------

# Blocks of 16 tokens that vLLM's profiling run allocated (fp16, gpu_memory_utilization 0.9) for 1, 2, 3 ... layers of a
# model on one GPU, from Helix (ASPLOS '25, Apache-2.0), simulator/model_manager/<model>/<gpu>/*.py. With these blocks
# the GPU is full: the estimate is to be held against the memory that CUDA reports for it, the GiB beside the name.
LLAMA2_70B = {"hidden_size": 8192, "attention_heads": 64, "kv_heads": 8, "ffn_size": 28672}
LLAMA1_30B = {"hidden_size": 6656, "attention_heads": 52, "kv_heads": 52, "ffn_size": 17920}
_LAYERS_1_TO_18_ON_A100 = [80613, 39046, 25190, 18263, 14106, 11335, 9355, 7871, 6716, 5792, 5037, 4407, 3874, 3417]
_LAYERS_1_TO_18_ON_A100 += [3021, 2675, 2369, 2097]
BLOCKS: dict[tuple[str, float], tuple[dict[str, int], list[int]]] = {
    ("llama2-70b on A100-40GB", 39.39): (
        LLAMA2_70B,
        [498326, 236107, 148700, 104997, 78775, 61294, 48807, 39442, 32158, 26331, 21564, 17591],
    ),
    ("llama2-70b on L4", 22.03): (LLAMA2_70B, [266146, 121017, 71296, 46944, 32333, 22592, 15634]),
    ("llama2-70b on T4", 14.58): (LLAMA2_70B, [155320, 63484, 32872, 17566]),
    ("llama2-70b on V100-16GB", 15.77): (LLAMA2_70B, [172256, 71952, 38517, 21800]),
    ("llama1-30b on A100-40GB", 39.39): (
        LLAMA1_30B,
        _LAYERS_1_TO_18_ON_A100,
    ),
    ("llama1-30b on L4", 22.03): (LLAMA1_30B, [41191, 19335, 12050, 8407, 6221, 4764, 3724, 2943, 2336, 1850, 1453]),
    ("llama1-30b on T4", 14.58): (LLAMA1_30B, [26849, 12164, 7269, 4821, 3353, 2374, 1675]),
    ("llama1-30b on V100-16GB", 15.77): (LLAMA1_30B, [29454, 13467, 8137, 5473, 3874, 2808, 2047]),
}
POINTS = [
    (name, memory_gib, shape, layers, blocks)
    for (name, memory_gib), (shape, counts) in BLOCKS.items()
    for layers, blocks in enumerate(counts, 1)
]


@pytest.mark.parametrize(("name", "memory_gib", "shape", "layers", "blocks"), POINTS)
def test_a_gpu_that_vllm_filled_is_what_the_estimate_asks_within_a_tenth_and_never_less(
    name: str, memory_gib: float, shape: dict[str, int], layers: int, blocks: int
) -> None:
    hidden, ffn, kv_width = shape["hidden_size"], shape["ffn_size"], shape["kv_heads"] * 128
    parameters = layers * (2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * ffn + 2 * hidden)
    part = made(**shape, layers=layers, parameters=parameters, max_context=16 * blocks)
    needed = models.estimate(part, "fp16", batch=1, context=16 * blocks, devices=1).memory_bytes / GIB
    assert memory_gib <= needed <= 1.1 * memory_gib, name


# GiB on each H100 of 79.18 GiB that vLLM 0.11 reported at gpu_memory_utilization 0.9 for weights and for the cache it
# allocated; llm-d/llm-d-benchmark (Apache-2.0), config_explorer/empirical-vllm-memory-results.md.
H100 = [
    ("gpt-oss-20b", "bf16", 1, 13.47, 50.28),
    ("gpt-oss-120b", "bf16", 1, 64.38, 3.33),
    ("llama-3.3-70b", "fp8", 2, 33.88, 32.00),
    ("llama-3.1-8b", "bf16", 1, 14.99, 51.38),
    ("qwen3-0.6b", "bf16", 1, 1.12, 64.45),
    ("qwen3-32b", "bf16", 1, 61.03, 4.45),
    ("qwen3-32b", "bf16", 2, 30.59, 34.49),
]


@pytest.mark.parametrize(("model", "precision", "devices", "weights_gib", "cache_gib"), H100)
def test_profiles_of_vllm_on_h100_agree(
    model: str, precision: Any, devices: int, weights_gib: float, cache_gib: float
) -> None:
    found = profile(model)
    assert models.weights_bytes(found, precision) / devices / GIB == pytest.approx(weights_gib, rel=0.01)
    overhead = models.overhead_bytes(found, precision, 1, None, devices)
    needed = (weights_gib + cache_gib + overhead / GIB) / models.USABLE_SHARE
    assert 79.18 <= needed <= 1.1 * 79.18


# --- The formulas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("llama-2-7b", 524_288),  # every head its own keys and values
        ("llama-3.1-8b", 131_072),  # grouped
        ("mixtral-8x22b", 229_376),
        ("qwen3-30b-a3b", 98_304),
        ("phi-4", 204_800),
        ("falcon-7b", 8_192),  # one for all
        ("deepseek-v3", 70_272),  # latent
        ("gemma-2-27b", 376_832),
        ("mistral-small-24b", 163_840),  # as vLLM reports it
    ],
)
def test_cache_bytes_of_a_token_are_the_published_ones(model: str, size: int) -> None:
    assert models.kv_bytes_per_token(profile(model), "bf16") == size


def test_key_heads_are_shared_out_until_each_device_has_one() -> None:
    found = profile("qwen3-30b-a3b")
    sizes = [models.kv_bytes_per_token(found, "bf16", devices) for devices in (1, 2, 4, 8)]
    assert sizes == [98_304, 49_152, 24_576, 24_576]
    latent = profile("deepseek-v3")
    assert models.kv_bytes_per_token(latent, "fp8", 8) == models.kv_bytes_per_token(latent, "fp8", 1)


def test_layers_with_a_window_keep_no_more_than_the_window() -> None:
    half, every = profile("gemma-2-27b"), profile("mistral-7b-v0.1")
    full = models.kv_cache_bytes(half, "bf16", 1, 4096)
    assert models.kv_cache_bytes(half, "bf16", 1, 8192) == full * 1.5
    assert models.kv_cache_bytes(every, "bf16", 1, 32768) == models.kv_cache_bytes(every, "bf16", 1, 4096)


def test_a_decoder_keeps_what_it_saw_of_its_encoder() -> None:
    found = profile("whisper-large-v3")
    kept = models.kv_cache_bytes(found, "fp16", 1, 448)
    assert kept == 163_840 * (448 + 1500)
    assert kept - 163_840 * 448 == pytest.approx(245.8e6, rel=1e-3)  # of one clip of 30 seconds


def test_published_sizes_of_checkpoints_win() -> None:
    assert models.weights_bytes(profile("gpt-oss-20b"), "bf16") / GIB == pytest.approx(13.47)
    assert models.weights_bytes(profile("deepseek-v3"), "fp8") / 671e9 == pytest.approx(1, abs=0.005)
    assert models.weights_bytes(profile("phi-4"), "bf16") / GIB == pytest.approx(27.31, abs=0.005)


def test_what_is_not_split_takes_the_same_on_every_device() -> None:
    one, two = (models.estimate(profile("bert-large"), "fp32", 8, 512, devices) for devices in (1, 2))
    assert (one.memory_bytes, one.weights_bytes) == (two.memory_bytes, two.weights_bytes)
    assert models.device_counts(profile("bert-large"), 8) == [1]


def test_plain_needs_are_taken_as_they_are() -> None:
    plain = models.ModelProfile.model_validate(
        {"id": "ours", "kind": "llm", "precision": "fp16", "memory_gib": 20, "provenance": {"confidence": "known"}}
    )
    assert models.workload(plain, None, None, None).on(1).memory_bytes == 20 * GIB
    for changed, key in (({"precision": "fp8"}, "precision"), ({"batch": 2}, "batch")):
        with pytest.raises(errors.ModelError, match="hold for fp16 and batch 1 only") as caught:
            models.estimate(plain, **{"precision": "fp16", "batch": 1, "context": None, "devices": 1, **changed})
        assert caught.value.key == key


# --- Parallelism ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        ("llama-3.1-70b", [1, 2, 4, 8, 16]),
        ("qwen2.5-7b", [1, 2, 4]),  # 28 heads: 7 and 14 devices could not share the 4 KV heads
        ("qwen2.5-0.5b", [1, 2]),  # 14 heads
        ("falcon-7b", [1]),  # 71 heads
        ("phi-4", [1, 2, 5, 10]),  # 40 heads, 10 KV heads
        ("gpt2", [1, 2, 3, 4, 6, 12]),
        ("deepseek-v3", [1, 2, 4, 8, 16]),
    ],
)
def test_devices_divide_the_heads(model: str, counts: list[int]) -> None:
    assert models.device_counts(profile(model), 16) == counts


def test_a_number_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(errors.ModelError, match=r"40 attention heads, which 3 devices .* evenly; 1, 2, 5 can"):
        models.estimate(profile("phi-4"), "bf16", 1, 4096, 3)
    with pytest.raises(errors.ModelError, match="10 KV heads"):
        models.estimate(profile("phi-4"), "bf16", 1, 4096, 4)
    with pytest.raises(errors.ModelError, match="intermediate size of 100"):
        models.estimate(made(ffn_size=100), "bf16", 1, 4096, 8)


# --- Unknown is a value -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "figure", ["parameters", "layers", "attention_heads", "kv_heads", "head_dim", "vocabulary", "max_context"]
)
def test_a_figure_that_is_missing_is_named_and_never_guessed(figure: str) -> None:
    lacking = made(**{figure: None})
    with pytest.raises(errors.ModelError, match=f"{figure} of made is not stated") as caught:
        models.workload(lacking, "bf16", None, None).on(1)
    assert caught.value.key == "model"


@pytest.mark.parametrize(
    "figures",
    [
        {"sliding_window": 4096},
        {"sliding_layers": 4},
        {"sliding_window": 4096, "sliding_layers": 33},
        {"latent_size": 512, "kv_heads": None},
        {"latent_size": 512, "rope_size": 64},
        {"active_parameters": 9_000_000_000},
        {"parameters": 0},
        {"id": "Llama 3"},
        {"kind": "chatbot"},
        {"bogus": 1},
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(figures: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"validation error"):
        made(**figures)


# --- What ships -------------------------------------------------------------------------------------------------------


def test_63_models_of_every_kind_ship() -> None:
    assert len(BUILTIN) == 63
    kinds = {each.kind for each in BUILTIN}
    assert kinds == {"llm", "moe", "encoder", "embedding", "vision", "speech", "diffusion"}
    assert any(each.latent_size for each in BUILTIN)
    assert any(each.sliding_window for each in BUILTIN)


@pytest.mark.parametrize("found", list(BUILTIN), ids=lambda each: each.id)
def test_every_model_that_ships_can_be_sized_and_says_where_its_figures_are_from(found: models.ModelProfile) -> None:
    needed = models.workload(found, None, None, None).on(1)
    assert needed.weights_bytes is not None
    assert 0 < needed.weights_bytes < needed.memory_bytes
    assert found.provenance.sources or found.provenance.known
    assert {*found.provenance.known} <= {*models.ModelProfile.model_fields}


@pytest.mark.parametrize(
    "found",
    [each for each in BUILTIN if each.kind == "llm" and each.id not in ("falcon-7b", "gpt2")],
    ids=lambda m: m.id,
)
def test_parameters_of_dense_models_follow_from_their_shape(found: models.ModelProfile) -> None:
    assert found.layers
    assert found.hidden_size
    assert found.attention_heads
    assert found.kv_heads
    assert found.head_dim
    assert found.ffn_size
    assert found.vocabulary
    assert found.parameters
    attention = 2 * found.hidden_size * found.head_dim * (found.attention_heads + found.kv_heads)
    layer = attention + 3 * found.hidden_size * found.ffn_size
    embeddings = found.vocabulary * found.hidden_size * (1 if found.tied_embeddings else 2)
    # Norms and biases, and a vision tower of gemma-3-27b, are what is left.
    assert found.parameters == pytest.approx(found.layers * layer + embeddings, rel=0.02)


def test_names_are_exact_and_a_misspelt_one_names_the_nearest() -> None:
    assert BUILTIN.get("llama-3.1-8b") is not None
    assert BUILTIN.get("Llama-3.1-8B") is None
    assert BUILTIN.nearest("meta-llama/Llama_3.1_8B") == "llama-3.1-8b"
    assert BUILTIN.nearest("qqqqqqqq") is None
    with pytest.raises(errors.ModelError, match=r"did you mean whisper-large-v3\?"):
        BUILTIN.find("whisper-large")


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(errors.CatalogueError, match="made: id: two models have it"):
        models.Profiles([made(), made()])
