"""Pod annotations -> Needs: what the model needs of its GPUs, in the grammar of the `anygpu.io/` keys."""

import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NewType

from capability_db import errors as capability_errors
from capability_db import models, partitions, quantities, resources
from capability_db.catalogue import Catalogue
from capability_db.sku import FORMATS, Format, Frozen, VendorName
from capability_db.vendors import VENDORS
from scheduler import errors, policies

PREFIX = "anygpu.io/"
INJECT_LABEL = "anygpu.io/inject"
DECISION = "anygpu.io/decision"
REQUESTED_IMAGE = "anygpu.io/requested-image"
BOUND_VENDOR = "anygpu.io/bound-vendor"
RELEASED = "anygpu.io/released"
"""Says that a bind under way was given up, and when; writing it makes that bind's late Binding a conflict."""
WRITTEN_BACK = (DECISION, REQUESTED_IMAGE, BOUND_VENDOR, RELEASED)
ENV_PREFIX = "anygpu.io/env."
"""`anygpu.io/env.NAME`: environment that differs by vendor, written at bind, read by containers through fieldRef."""
BINDING_LABEL = "anygpu.io/binding"
"""On late and claim pods: how they are bound."""

Share = Literal["whole", "slice", "any"]
Preference = Literal["required", "preferred", "none"]
Objective = policies.Objective
Binding = policies.Binding
BINDINGS: tuple[Binding, ...] = typing.get_args(Binding)
EARLY: tuple[Binding, ...] = ("early",)
SkuId = NewType("SkuId", str)

MAX_GPUS = 9999


class Needs(Frozen):
    """What one pod needs of its GPUs; every figure is for one device."""

    gpus: int = 1
    memory_bytes: int | None = None
    memory_text: str | None = None
    """The memory as the user wrote it, or as the model needs it, for refusals."""
    workload: models.Workload | None = None
    """The model that the memory was computed for; None: the pod states its memory, or needs none."""
    precision: tuple[Format, ...] = ()
    matrix_cores: Preference = "preferred"
    tflops: float | None = None
    bandwidth_gbs: float | None = None
    interconnect: Preference = "none"
    mig: str | None = None
    share: Share = "whole"
    vendors: tuple[VendorName, ...] = ()
    """In order of preference; empty: any, none preferred."""
    skus: tuple[SkuId, ...] = ()
    not_skus: tuple[SkuId, ...] = ()
    objective: Objective = "pack"
    weights: resources.Weights | None = None
    """In place of the objective, from a policy."""
    max_price_usd_hour: float | None = None
    container: str | None = None
    binding: Binding = "early"
    resources: tuple[str, ...] = ()
    """The names under which the pod's containers ask GPUs, of which a node must offer one; not an annotation."""
    policy: policies.Effective = policies.NONE
    """What the PlacementPolicies say that hold for the pod; not an annotation."""

    @property
    def rate_format(self) -> Format:
        """The format at which `tflops` and capability are judged."""
        return self.precision[0] if self.precision else "fp16"


class _Problem(Exception):
    """One key's bad value; its text goes behind the key and the value."""


def is_written_back(key: str) -> bool:
    """Whether an annotation key is one that only anygpu writes: on a pod that comes in it is dropped, never trusted."""
    return key in WRITTEN_BACK or key.startswith(ENV_PREFIX)


def is_opted_in(annotations: Mapping[str, str]) -> bool:
    """Whether a pod asks anything of anygpu: an `anygpu.io/` annotation that is not one anygpu writes."""
    return any(key.startswith(PREFIX) and not is_written_back(key) for key in annotations)


def parse(
    annotations: Mapping[str, str],
    catalogue: Catalogue,
    devices: int | None = None,
    policy: policies.Effective = policies.NONE,
) -> Needs:
    """The needs that the annotations state, and for the rest what the policy gives and the model needs that they name.

    `devices` is the number that the pod's own containers ask, where they do. Raises InvalidNeeds with every problem,
    each naming key and value.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    stated: dict[str, str] = {}
    for key in sorted(annotations):
        if not key.startswith(PREFIX) or is_written_back(key):
            continue
        name, text = key.removeprefix(PREFIX), annotations[key].strip()
        try:
            if name in _NOT_YET:
                raise _Problem("is not available in this version; drop it")
            if name not in _KEYS:
                raise _Problem(_unknown_key(name))
            if not text:
                raise _Problem(f"empty; {_KEYS[name][1]}")
            values |= _KEYS[name][0](text, catalogue)
            stated[name] = text
        except _Problem as problem:
            named = bool(text) and (name in _KEYS or name in _NOT_YET)
            shown = f" {_shorten(text)!r}" if named else ""
            problems.append(f"{_shorten(key)}:{shown} {problem}")
    sizes = {key: values.pop(key) for key in _SIZES if key in values}
    problems += [] if problems else _contradictions(values, stated, catalogue)
    problems += [] if problems else _forbidden(values, catalogue, policy)
    values |= _defaults(stated, policy)
    if sizes and not problems:
        try:
            values |= _sized(sizes, values, stated, catalogue, devices)
        except capability_errors.ModelError as error:
            key = error.key if error.key in stated else "model" if "model" in stated else min(sizes)
            problems.append(f"{PREFIX}{key}: {_shorten(stated[key])!r}: {error}")
    if problems:
        raise errors.InvalidNeeds(problems)
    if values.get("mig") and "share" not in stated:
        values["share"] = "slice"
    return Needs.model_validate(values)


def _sized(
    sizes: Mapping[str, object],
    values: Mapping[str, object],
    stated: Mapping[str, str],
    catalogue: Catalogue,
    devices: int | None,
) -> dict[str, object]:
    """The needs that the model fills: number of devices, memory, precision, interconnect; raises ModelError.

    Devices that nobody states are the fewest on which the model fits: with the memory that the pod states, else with
    the largest GPU of the capability DB that its other annotations allow. So a pod that wants its model spread over
    several smaller GPUs states `gpus` or `memory`.
    """
    profile = sizes.get("model")
    if not isinstance(profile, models.ModelProfile):
        raise capability_errors.ModelError(min(sizes), "sizes a model, and the pod names none; add anygpu.io/model")
    needs = Needs.model_validate(values)
    batch, context = (size if isinstance(size := sizes.get(key), int) else None for key in ("batch", "context"))
    work = models.workload(profile, needs.precision[0] if needs.precision else None, batch, context)
    filled: dict[str, object] = {} if needs.precision else {"precision": (work.precision,)}
    gpus = devices or (needs.gpus if "gpus" in stated else 1 if needs.mig else None)
    if needs.memory_bytes is not None:
        if gpus is None:
            gpus = work.fewest(needs.memory_bytes) if profile.is_sharded else 1
            if gpus is None:
                raise capability_errors.ModelError("memory", _too_large(work, None))
    else:
        largest = _largest(needs.model_copy(update=filled), catalogue)
        if gpus is None:
            gpus = work.fewest(largest)
        if gpus is None or (work.on(gpus).memory_bytes > largest and not needs.mig):
            raise capability_errors.ModelError("model", _too_large(work, gpus, largest))
        text = _gi(work.on(gpus).memory_bytes)
        filled |= {"memory_text": text, "memory_bytes": quantities.units(text), "workload": work}
    if gpus > 1 and "interconnect" not in stated and profile.is_sharded:
        filled["interconnect"] = "preferred"
    return filled | {"gpus": gpus}


def _largest(needs: Needs, catalogue: Catalogue) -> float:
    """Bytes of the largest GPU that the needs' vendors, SKUs and formats allow; of all, where they allow none."""
    allowed = [
        sku.memory_mib
        for sku in catalogue
        if needs.policy.allows(sku.vendor, sku.id)
        and (not needs.skus or sku.id in needs.skus)
        and sku.id not in needs.not_skus
        and (not needs.vendors or sku.vendor in needs.vendors)
        and {*needs.precision} <= {*sku.formats}
    ]
    return max(allowed or [sku.memory_mib for sku in catalogue]) * quantities.MIB


def _too_large(work: models.Workload, gpus: int | None, largest: float | None = None) -> str:
    counts = models.device_counts(work.profile, models.MOST_DEVICES)
    count = gpus or counts[-1]
    text = f"needs {_gi(work.on(count).memory_bytes)} on {'1 GPU' if count == 1 else f'each of {count} GPUs'}"
    if largest is None:
        return f"too little for {work.profile.id}, which {text}"
    text += f", and the largest that the other annotations allow has {math.floor(largest / 2**30 * 10) / 10:g}Gi"
    enough = work.fewest(largest)
    return f"{text}; {enough} GPUs would do" if enough else f"{text}; a smaller context, batch or precision needs less"


def _gi(size: int) -> str:
    """Bytes as a quantity of Gi, rounded up to one decimal."""
    return f"{math.ceil(size / 2**30 * 10) / 10:.1f}".removesuffix(".0") + "Gi"


def _contradictions(values: dict[str, object], stated: Mapping[str, str], catalogue: Catalogue) -> list[str]:
    found: list[str] = []
    needs = Needs.model_validate(values)
    both = sorted({*needs.skus} & {*needs.not_skus})
    if both:
        found.append(f"anygpu.io/not-sku: {', '.join(both)} is also asked by anygpu.io/sku; name it in one of the two")
    sku_vendors = {sku.vendor for sku in (catalogue.get(sku_id) for sku_id in needs.skus) if sku}
    if needs.skus and needs.vendors and not sku_vendors & {*needs.vendors}:
        found.append(
            f"anygpu.io/sku: {','.join(needs.skus)} is of {', '.join(sorted(sku_vendors))}, but anygpu.io/vendor asks "
            f"{','.join(needs.vendors)}; drop one of the two"
        )
    if needs.mig:
        if needs.vendors and "nvidia" not in needs.vendors:
            found.append(
                f"anygpu.io/mig: {needs.mig} is an NVIDIA profile, but anygpu.io/vendor asks "
                f"{','.join(needs.vendors)}; add nvidia or drop anygpu.io/mig"
            )
        if needs.gpus > 1:
            found.append(
                f"anygpu.io/gpus: {needs.gpus} contradicts anygpu.io/mig: a container can use one MIG instance only; "
                "ask for gpus: 1 or for whole devices"
            )
        if stated.get("share") == "whole":
            found.append("anygpu.io/share: whole contradicts anygpu.io/mig, which is a slice; drop one of the two")
    return found


def _forbidden(values: dict[str, object], catalogue: Catalogue, policy: policies.Effective) -> list[str]:
    """What the pod states that its policies leave nothing of."""
    needs = Needs.model_validate(values)
    vendors = [[rule.forbids_vendor(vendor) for rule in policy.rules] for vendor in needs.vendors]
    known = [sku for sku_id in needs.skus if (sku := catalogue.get(sku_id)) is not None]
    skus = [
        [text for rule in policy.rules for text in (rule.forbids_sku(sku.id), rule.forbids_vendor(sku.vendor))]
        for sku in known
    ]
    found: list[str] = []
    for key, stated, texts in (("vendor", needs.vendors, vendors), ("sku", needs.skus, skus)):
        if texts and all(any(each) for each in texts):
            why = "; ".join(dict.fromkeys(next(text for text in each if text) for each in texts))
            found.append(f"{PREFIX}{key}: {','.join(stated)!r}: {why}; {policies.who_can_change(policy.rules)}")
    return found


def _defaults(stated: Mapping[str, str], policy: policies.Effective) -> dict[str, object]:
    """What the policies give, where the pod says nothing."""
    found: dict[str, object] = {"policy": policy}
    if "objective" not in stated and policy.objective is not None:
        found["objective"] = policy.objective
    if "objective" not in stated and policy.weights is not None:
        found["weights"] = policy.weights
    if "binding" not in stated and policy.binding is not None:
        found["binding"] = policy.binding
    return found


def _unknown_key(name: str) -> str:
    if name == INJECT_LABEL.removeprefix(PREFIX):
        return 'is a label, not an annotation; set the label anygpu.io/inject: "false" to opt out'
    near = difflib.get_close_matches(name, [*_KEYS, *_NOT_YET], n=1, cutoff=0.6)
    return f"unknown; did you mean {near[0]}?" if near else f"unknown; known keys are {', '.join(sorted(_KEYS))}"


def _shorten(text: str) -> str:
    """Text that is safe in one line of a message: printable, at most 80 characters."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean if len(clean) <= 80 else clean[:77] + "..."


# --- One parser a key: (text, catalogue) -> fields of Needs; a bad value raises _Problem ------------------------------


def _gpus(text: str, _: Catalogue) -> dict[str, object]:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_GPUS:
        raise _Problem(f"is not a number of devices; write an integer from 1 to {MAX_GPUS}")
    return {"gpus": int(text)}


_MEMORY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E)")


def _memory(text: str, _: Catalogue) -> dict[str, object]:
    found = _MEMORY.fullmatch(text)
    if not found:
        number = re.match(r"[0-9]{1,15}(?:\.[0-9]{1,9})?", text)
        example = number[0] if number else "40"
        raise _Problem(f"is not a memory size; a unit is required: {example}Gi is 2^30 bytes each, {example}G is 10^9")
    size = quantities.units(text)
    if size <= 0:
        raise _Problem("is no memory at all; write for example 40Gi, or leave the key out")
    return {"memory_bytes": size, "memory_text": text}


def _number(field: str, unit: str, example: str) -> Callable[[str, Catalogue], dict[str, object]]:
    def parse_number(text: str, _: Catalogue) -> dict[str, object]:
        if not re.fullmatch(r"[0-9]{1,9}(?:\.[0-9]{1,6})?", text) or float(text) <= 0:
            raise _Problem(f"is not a number of {unit} above 0; write for example {example}")
        return {field: float(text)}

    return parse_number


def _choice(field: str, choices: tuple[str, ...]) -> Callable[[str, Catalogue], dict[str, object]]:
    def parse_choice(text: str, _: Catalogue) -> dict[str, object]:
        return {field: _one_of(text, choices)}

    return parse_choice


def _one_of(text: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    if text not in choices:
        near = difflib.get_close_matches(text.lower(), choices, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise _Problem(f"names {_shorten(text)}, which is not one of {', '.join(choices)}{hint}")
    return text


def _items(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise _Problem("has an empty item; separate items by one comma")
    if len({*items}) < len(items):
        raise _Problem("names an item twice")
    return items


def _list(field: str, choices: tuple[str, ...]) -> Callable[[str, Catalogue], dict[str, object]]:
    def parse_list(text: str, _: Catalogue) -> dict[str, object]:
        return {field: tuple(_one_of(item, choices) for item in _items(text))}

    return parse_list


def _sku_list(field: str) -> Callable[[str, Catalogue], dict[str, object]]:
    def parse_skus(text: str, catalogue: Catalogue) -> dict[str, object]:
        items = _items(text)
        for item in items:
            if catalogue.get(item) is None:
                near = catalogue.nearest(item)
                hint = f"; did you mean {near}?" if near else "; `anygpu skus` lists them"
                raise _Problem(f"names the unknown SKU {_shorten(item)}{hint}")
        return {field: tuple(items)}

    return parse_skus


def _mig(text: str, _: Catalogue) -> dict[str, object]:
    profiles = partitions.all_mig_profiles()
    if text not in profiles:
        near = difflib.get_close_matches(text.lower(), sorted(profiles), n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else "; write for example 3g.40gb"
        raise _Problem(f"is not a MIG profile of any SKU{hint}")
    return {"mig": text}


_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _container(text: str, _: Catalogue) -> dict[str, object]:
    if not _DNS_LABEL.fullmatch(text):
        raise _Problem("is not a container name")
    return {"container": text}


def _model(text: str, catalogue: Catalogue) -> dict[str, object]:
    try:
        return {"model": catalogue.models.find(text)}
    except capability_errors.ModelError as error:
        raise _Problem(f"is unknown: {error}") from error


def _size(field: str, unit: str, example: str) -> Callable[[str, Catalogue], dict[str, object]]:
    def parse_size(text: str, _: Catalogue) -> dict[str, object]:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
            raise _Problem(f"is not a number of {unit}; write an integer of 1 or more, for example {example}")
        return {field: int(text)}

    return parse_size


_KEYS: dict[str, tuple[Callable[[str, Catalogue], dict[str, object]], str]] = {
    "gpus": (_gpus, "write the number of devices, for example 2"),
    "memory": (_memory, "write the memory of one device, for example 40Gi"),
    "precision": (_list("precision", FORMATS), "write number formats, for example bf16,fp16"),
    "matrix-cores": (_choice("matrix_cores", ("required", "preferred", "none")), "write required, preferred or none"),
    "tflops": (_number("tflops", "TFLOPS", "300"), "write the dense TFLOPS of one device, for example 300"),
    "bandwidth": (_number("bandwidth_gbs", "GB/s", "2000"), "write the memory bandwidth in GB/s, for example 2000"),
    "interconnect": (_choice("interconnect", ("required", "preferred")), "write required or preferred"),
    "mig": (_mig, "write a MIG profile, for example 3g.40gb"),
    "share": (_choice("share", ("whole", "slice", "any")), "write whole, slice or any"),
    "vendor": (_list("vendors", tuple(VENDORS)), "write vendors in order of preference, for example nvidia,amd"),
    "sku": (_sku_list("skus"), "write SKU ids, for example h100-sxm,mi300x"),
    "not-sku": (_sku_list("not_skus"), "write SKU ids, for example t4"),
    "model": (_model, "write a model's name, for example llama-3.1-8b"),
    "batch": (_size("batch", "sequences", "16"), "write the sequences or items at a time, for example 16"),
    "context": (_size("context", "tokens", "8192"), "write the tokens of a sequence, for example 8192"),
    "objective": (_choice("objective", ("pack", "cost", "speed", "energy")), "write pack, cost, speed or energy"),
    "max-price": (_number("max_price_usd_hour", "USD per device-hour", "2.50"), "write USD per device-hour"),
    "container": (_container, "write the name of the container that gets the GPU"),
    "binding": (_choice("binding", BINDINGS), "write early, late or claim"),
}
KEYS = tuple(_KEYS)

# Keys of the contract whose machinery is not there yet: refused, never ignored.
_NOT_YET = ("image", "fraction")

# Keys that size a model, from which other needs follow.
_SIZES = ("model", "batch", "context")
