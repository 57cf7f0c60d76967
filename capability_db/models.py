"""A model's shape -> memory per device, number of devices, parallelism; pure, and nothing missing is guessed.

Where the constants come from, as measured or used by others for serving with vLLM:

- KAITO's estimator (measured on vLLM 0.10.1): plan with 0.84 of a device's memory; non-torch memory is at most 0.6 GiB.
- aiconfigurator (NVIDIA): cache bytes a token, and activations of a prefill step.
- llm-d's memory profiles of vLLM 0.11 on H100: what sampling over the vocabulary takes.
- GPUStack: 1.2 times the weights and 0.5 GiB for models that are no LLMs.

`tests/unit/test_models.py` holds them against block counts that vLLM itself published.
"""

import difflib
import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, TypeAdapter, ValidationError

from capability_db import errors, partitions
from capability_db.rules import Rule
from capability_db.sku import Data, Format, Frozen, Positive, Provenance

Kind = Literal["llm", "moe", "encoder", "embedding", "vision", "speech", "diffusion"]
Count = Annotated[int, Field(ge=1)]

MODEL_ID: Final = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
MODEL_ID_LENGTH: Final = 63

GIB: Final = 2**30
BYTES: Final[dict[Format, float]] = {
    "fp64": 8,
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5625,  # 4 bits, and an 8-bit scale for each 16 of them (NVFP4)
}
"""Bytes of one weight."""

USABLE_SHARE: Final = 0.84
RUNTIME_BYTES: Final = round(0.6 * GIB)
PREFILL_TOKENS: Final = 8192
SAMPLED_SEQUENCES: Final = 256
SAMPLING_BYTES: Final = 48
MOST_DEVICES: Final = 8
"""Devices of one node, where nothing else says how many."""


class ModelFigures(Data):
    """One model: its shape, or `memory_gib` as its plain need. A figure not stated is unknown."""

    kind: Kind
    """What it is: it decides which formula sizes it, and whether servers split it over devices."""
    precision: Format
    """The format that the published checkpoint is computed in."""
    memory_gib: Positive | None = None
    """Plain need: all that the model takes on one device at `precision` and batch 1; the shape is not used then."""
    parameters: Count | None = None
    """All of them, the embeddings and every expert too."""
    active_parameters: Count | None = None
    """Those that one token meets (mixture of experts)."""
    weights_gib: dict[Format, Positive] = {}  # noqa: RUF012 - pydantic copies it
    """Size of a published checkpoint, by the format it is computed in, where that is not parameters times bytes."""
    layers: Count | None = None
    """Those that keep keys and values: of an encoder-decoder, the decoder's."""
    hidden_size: Count | None = None
    """Width of the residual stream."""
    attention_heads: Count | None = None
    """Query heads, which several devices must share evenly."""
    kv_heads: Count | None = None
    """Key and value heads; as many as `attention_heads` where none are shared."""
    head_dim: Count | None = None
    """Values of one head."""
    latent_size: Count | None = None
    """Compressed keys and values of a token and layer under multi-head latent attention (`kv_lora_rank`)."""
    rope_size: Count | None = None
    """Positional part of the key beside it (`qk_rope_head_dim`)."""
    sliding_window: Count | None = None
    """Tokens that such a layer looks back."""
    sliding_layers: Count | None = None
    """Layers that see `sliding_window` tokens only; the others see all."""
    encoder_context: Count | None = None
    """Encoder positions whose keys and values the decoder keeps for each sequence."""
    ffn_size: Count | None = None
    """Intermediate size of the feed-forward network (of one expert)."""
    experts: Count | None = None
    """Of one layer, where it is a mixture of them."""
    vocabulary: Count | None = None
    """Tokens that the model knows."""
    tied_embeddings: bool = False
    """Whether input and output embeddings are one matrix."""
    max_context: Count | None = None
    """Tokens of a sequence; not stated: the model takes no token sequences."""
    activation_values: Count | None = None
    """Values alive at once for one item of the batch (an image), where the kind is no transformer over tokens."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.slidingWindow) == has(self.slidingLayers)",
            lambda model: (model.sliding_window is None) == (model.sliding_layers is None),
            "slidingWindow and slidingLayers go together; state both or neither",
        ),
        Rule(
            "!has(self.slidingLayers) || !has(self.layers) || self.slidingLayers <= self.layers",
            lambda model: not model.sliding_layers or not model.layers or model.sliding_layers <= model.layers,
            "slidingLayers: more than layers, of which they are a part",
        ),
        Rule(
            "has(self.latentSize) == has(self.ropeSize)",
            lambda model: (model.latent_size is None) == (model.rope_size is None),
            "latentSize and ropeSize go together (kv_lora_rank, qk_rope_head_dim); state both or neither",
        ),
        Rule(
            "!has(self.latentSize) || !has(self.kvHeads)",
            lambda model: model.latent_size is None or model.kv_heads is None,
            "kvHeads: the latent cache (latentSize) has none; leave one of them out",
        ),
        Rule(
            "!has(self.kvHeads) || !has(self.attentionHeads) || self.kvHeads <= self.attentionHeads",
            lambda model: not model.kv_heads or not model.attention_heads or model.kv_heads <= model.attention_heads,
            "kvHeads: more than attentionHeads, which share them",
        ),
        Rule(
            "!has(self.activeParameters) || !has(self.parameters) || self.activeParameters <= self.parameters",
            lambda model: (
                not model.active_parameters or not model.parameters or model.active_parameters <= model.parameters
            ),
            "activeParameters: more than parameters, of which they are a part",
        ),
    )


class ModelProfile(ModelFigures):
    """One model under its name."""

    id: Annotated[str, Field(pattern=MODEL_ID, max_length=MODEL_ID_LENGTH)]
    provenance: Provenance

    @property
    def is_sharded(self) -> bool:
        """Whether servers split the model over devices; each device holds the whole of the others."""
        return self.kind in ("llm", "moe") and self.memory_gib is None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What each of some devices must hold."""

    devices: int
    memory_bytes: int
    """Memory that the device must have, what servers leave unused included."""
    weights_bytes: int | None
    kv_cache_bytes: int | None
    overhead_bytes: int | None
    """Activations and runtime; None, like the other parts: the profile states plain needs."""


class Workload(Frozen):
    """A model with the sizes it is run at; made by `workload`."""

    profile: ModelProfile
    precision: Format
    batch: Count
    context: Count | None

    def on(self, devices: int) -> Estimate:
        """The estimate for each of so many devices; raises ModelError."""
        return estimate(self.profile, self.precision, self.batch, self.context, devices)

    def fewest(self, memory_bytes: float, most: int = MOST_DEVICES) -> int | None:
        """The fewest devices of so much memory that hold the model; None: `most` do not. Raises ModelError."""
        counts = device_counts(self.profile, most)
        return next((count for count in counts if self.on(count).memory_bytes <= memory_bytes), None)


def workload(profile: ModelProfile, precision: Format | None, batch: int | None, context: int | None) -> Workload:
    """A model at its sizes; what is None takes the model's precision, batch 1 and the model's longest context.

    The longest context is what servers reserve for unless they are told otherwise. Raises ModelError naming `batch`
    or `context` where the model cannot have it.
    """
    if batch is not None and batch < 1:
        raise errors.ModelError("batch", "is no number of sequences; write 1 or more")
    if context is not None:
        if profile.max_context is None:
            raise errors.ModelError("context", f"{profile.id} ({profile.kind}) has no context; leave it out")
        if not 1 <= context <= profile.max_context:
            raise errors.ModelError("context", f"{profile.id} takes from 1 to {profile.max_context} tokens")
    return Workload(
        profile=profile,
        precision=precision or profile.precision,
        batch=batch or 1,
        context=context or profile.max_context,
    )


# --- The formulas -----------------------------------------------------------------------------------------------------


def weights_bytes(profile: ModelProfile, precision: Format) -> int:
    """Bytes of all weights: parameters times bytes, or the published checkpoint's size where the profile states one.

    Below 16 bits the embeddings stay at 16, as published FP8 checkpoints have it: Llama-3.3-70B-FP8 takes 67.76 GiB in
    vLLM (llm-d's profiles), this formula gives 67.66.
    """
    if precision in profile.weights_gib:
        return round(profile.weights_gib[precision] * GIB)
    size = BYTES[precision]
    total = _stated(profile, "parameters") * size
    if size < 2 and profile.kind in ("llm", "moe"):
        matrices = 1 if profile.tied_embeddings else 2
        total += _stated(profile, "vocabulary") * _stated(profile, "hidden_size") * matrices * (2 - size)
    return math.ceil(total)


def kv_bytes_per_token(profile: ModelProfile, precision: Format, devices: int = 1) -> int:
    """Cache bytes of one token on each device, in all layers (aiconfigurator's memory model, KAITO, vLLM).

    - Grouped and multi-query attention: 2 * ceil(kv_heads / devices) * head_dim * layers * bytes. With fewer heads than
      devices each device keeps one (vLLM's `get_num_kv_heads`).
    - Latent attention: layers * (latent_size + rope_size) * bytes, the same on every device.

    The cache is in 16 bits unless weights are wider: vLLM's `kv_cache_dtype: auto`.
    """
    layers, size = _stated(profile, "layers"), _value_bytes(precision)
    if profile.latent_size is not None and profile.rope_size is not None:
        return layers * (profile.latent_size + profile.rope_size) * size
    heads = -(-_stated(profile, "kv_heads") // devices)
    return 2 * heads * _stated(profile, "head_dim") * layers * size


def kv_cache_bytes(profile: ModelProfile, precision: Format, batch: int, context: int, devices: int = 1) -> int:
    """Cache bytes of `batch` sequences of `context` tokens on each device.

    Layers with a sliding window keep min(context, window) tokens (aiconfigurator, hf-mem); a decoder that looks at an
    encoder keeps that one's positions too.
    """
    layers = _stated(profile, "layers")
    per_layer = kv_bytes_per_token(profile, precision, devices) // layers
    sliding = profile.sliding_layers or 0
    tokens = (layers - sliding) * context + sliding * min(context, profile.sliding_window or context)
    return batch * per_layer * (tokens + layers * (profile.encoder_context or 0))


def overhead_bytes(profile: ModelProfile, precision: Format, batch: int, context: int | None, devices: int = 1) -> int:
    """Bytes of activations and runtime on each device.

    LLMs: the larger of a prefill step and of sampling, and 0.6 GiB of runtime (KAITO: non-torch memory at most 0.6).

    - Prefill: 2 * 8192 tokens * heads * head_dim * c, where 8192 is vLLM's `max_num_batched_tokens`, and c is 11, 6.5
      and 5 on one, two and more devices, for mixtures of experts 22, 13 and 10 (aiconfigurator).
    - Sampling: 48 bytes for each of the vocabulary and of 256 sequences, vLLM's `max_num_seqs`, or `batch` if larger.
      llm-d's profiles on H100 (1024 sequences) come to 38 to 40 bytes for every model; the rest is a reserve.

    Others: a fifth of the weights and 0.5 GiB (GPUStack's claim for models that are no LLMs), and per item what a
    transformer of the shape keeps, 11 values for each token and head dimension, or the profile's `activation_values`.
    """
    if profile.is_sharded:
        width = _stated(profile, "attention_heads") * _stated(profile, "head_dim")
        step = (11.0 if devices == 1 else 6.5 if devices < 4 else 5.0) * (2 if profile.kind == "moe" else 1)
        prefill = 2 * PREFILL_TOKENS * width * step
        sampling = SAMPLING_BYTES * max(SAMPLED_SEQUENCES, batch) * _stated(profile, "vocabulary")
        return math.ceil(max(prefill, sampling)) + RUNTIME_BYTES
    fixed = math.ceil(weights_bytes(profile, precision) * 0.2) + GIB // 2
    return fixed + batch * _item_values(profile, batch, context) * _value_bytes(precision)


def _item_values(profile: ModelProfile, batch: int, context: int | None) -> int:
    if profile.activation_values is not None:
        return profile.activation_values
    if context is not None:
        tokens = context + (profile.encoder_context or 0)
        return 11 * tokens * _stated(profile, "attention_heads") * _stated(profile, "head_dim")
    if batch == 1:
        return 0  # within the fifth of the weights
    raise errors.ModelError(
        "batch",
        f"{profile.id} does not state its activation_values, so only batch 1 can be sized; state memory instead",
    )


def estimate(profile: ModelProfile, precision: Format, batch: int, context: int | None, devices: int) -> Estimate:
    """What each of so many devices must hold; raises ModelError where the profile lacks a figure or cannot be split so.

    LLMs: (weights / devices + cache + overhead) / 0.84, since servers leave a part of each device unused: vLLM takes
    0.9 (`gpu_memory_utilization`), of which KAITO measured that 0.84 can be planned with.
    """
    problem = parallel_problem(profile, devices)
    if problem:
        raise errors.ModelError("gpus", problem)
    if profile.memory_gib is not None:
        for key, differs in (("precision", precision != profile.precision), ("batch", batch > 1)):
            if differs:
                what = f"{profile.id} states plain needs, which hold for {profile.precision} and batch 1 only"
                raise errors.ModelError(key, f"{what}; state memory instead")
        return Estimate(devices, math.ceil(profile.memory_gib * GIB), None, None, None)
    shards = devices if profile.is_sharded else 1
    weights = -(-weights_bytes(profile, precision) // shards)
    cache = 0
    if profile.is_sharded or profile.encoder_context is not None:
        cache = kv_cache_bytes(profile, precision, batch, context or _stated(profile, "max_context"), shards)
    overhead = overhead_bytes(profile, precision, batch, context, shards)
    total = weights + cache + overhead
    memory = math.ceil(total / USABLE_SHARE) if profile.is_sharded else total
    return Estimate(devices, memory, weights, cache, overhead)


def parallel_problem(profile: ModelProfile, devices: int) -> str | None:
    """Why servers cannot split the model over so many devices; None: they can.

    The attention heads must divide (vLLM and aiconfigurator refuse otherwise), key and value heads must divide or be
    repeated evenly (vLLM), and the feed-forward network's intermediate size must divide (GPUStack's rules for MindIE).
    """
    what = _uneven(profile, devices) if profile.is_sharded else None
    if what is None:
        return None
    good = ", ".join(str(count) for count in device_counts(profile, MOST_DEVICES))
    return f"{profile.id} has {what}, which {devices} devices cannot share evenly; {good} can"


def device_counts(profile: ModelProfile, most: int) -> list[int]:
    """Every number of devices up to `most` that servers can split the model over; only 1 for what they do not split."""
    if not profile.is_sharded:
        return [1]
    return [count for count in range(1, most + 1) if _uneven(profile, count) is None]


def _uneven(profile: ModelProfile, devices: int) -> str | None:
    """What of a model so many devices cannot share evenly; None: they can."""
    heads, kv_heads, ffn_size = _stated(profile, "attention_heads"), profile.kv_heads or 1, profile.ffn_size or 0
    if heads % devices:
        return f"{heads} attention heads"
    if kv_heads % devices and devices % kv_heads:
        return f"{kv_heads} KV heads"
    return f"an intermediate size of {ffn_size}" if ffn_size % devices else None


def _value_bytes(precision: Format) -> int:
    """Bytes of a value that is computed with: 16 bits, or wider where the weights are."""
    return max(2, math.ceil(BYTES[precision]))


def _stated(profile: ModelProfile, field: str) -> int:
    value = getattr(profile, field)
    if not isinstance(value, int):
        raise errors.ModelError(
            "model", f"{field} of {profile.id} is not stated, so what it needs is unknown; state memory"
        )
    return value


# --- The profiles -----------------------------------------------------------------------------------------------------


class Profiles:
    """Model profiles by id; nothing in it changes after construction."""

    __slots__ = ("_by_id",)

    def __init__(self, profiles: Iterable[ModelProfile]) -> None:
        self._by_id: dict[str, ModelProfile] = {}
        for profile in profiles:
            if profile.id in self._by_id:
                raise errors.CatalogueError(f"{profile.id}: id: two models have it")
            self._by_id[profile.id] = profile

    @classmethod
    def builtin(cls) -> "Profiles":
        """The models that ship with anygpu; read once."""
        return _builtin()

    def get(self, model_id: str) -> ModelProfile | None:
        """The model of exactly this id."""
        return self._by_id.get(model_id)

    def find(self, model_id: str) -> ModelProfile:
        """The model of exactly this id; raises ModelError naming the nearest one."""
        found = self._by_id.get(model_id)
        if found is None:
            near = self.nearest(model_id)
            hint = f"did you mean {near}?" if near else "write for example llama-3.1-8b, deepseek-v3 or bert-large"
            raise errors.ModelError("model", hint)
        return found

    def nearest(self, model_id: str) -> str | None:
        """The id closest to a misspelt one; None: nothing is close."""
        wanted = model_id[:200].lower().rpartition("/")[2].replace("_", "-")
        near = difflib.get_close_matches(wanted, self._by_id, n=1, cutoff=0.6)
        return near[0] if near else None

    def __iter__(self) -> Iterator[ModelProfile]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)


@functools.lru_cache(maxsize=1)
def _builtin() -> Profiles:
    try:
        return Profiles(TypeAdapter(tuple[ModelProfile, ...]).validate_python(partitions.load_data("models.yaml")))
    except ValidationError as error:
        raise errors.CatalogueError(f"models.yaml: {error}") from error
