"""Does a device meet the needs, and if not, why not: pure, one verdict a device class, constant texts.

The texts end up in FailedScheduling events: kube-scheduler groups equal ones and re-queues a pod whose texts change, so
they are made of the needs and of the device's facts alone, never of live counts, and hold no percent sign (the event
recorder formats them).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from capability_db import models, node_facts, partitions, quantities, vendors
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass
from capability_db.sku import Sku
from scheduler import policies
from scheduler.needs import Needs


@dataclass(frozen=True, slots=True)
class Unmet:
    """One need that a device does not meet."""

    key: str
    """The annotation key (without prefix) that asks it; `model` where the GPU's model is unknown."""
    text: str
    """Why, with the figures of both sides."""
    change: str | None
    """The change of the pod that would meet it; None: no change of the pod would."""


def unmet(needs: Needs, device: DeviceClass) -> list[Unmet]:
    """Every need that the device fails, the most telling first; empty: it fits.

    A device that may be of several models fits only if each of them does.
    """
    name = device.label
    found: list[Unmet] = []
    if device.problem:
        return [Unmet("problem", f"{name}: {device.problem}", None)]
    if device.dra != (needs.binding == "claim"):
        return [_wrong_binding(needs, device)]
    if needs.resources and device.resource not in needs.resources:
        asked = " or ".join(needs.resources)
        return [Unmet("resource", f"offers {device.resource}, the pod asks {asked}", None)]
    if needs.vendors and device.vendor not in needs.vendors:
        asked = ",".join(needs.vendors)
        found.append(Unmet("vendor", f"{device.vendor}: vendor {asked} asked", f"vendor: {asked},{device.vendor}"))
    found += _forbidden(needs, device)
    if not device.skus:
        found.append(Unmet("model", f"unknown GPU model: {device.evidence}", None))
        return found
    found += _model(needs, device)
    found += _kind(needs, device, name)
    found += _memory(needs, device, name)
    for sku in device.skus:
        found += _compute(needs, device, sku)
    found += _price(needs, device)
    return found


def _wrong_binding(needs: Needs, device: DeviceClass) -> Unmet:
    if device.dra:
        text = f"its GPUs are allocated by the DRA driver {device.resource}, which binding claim alone reaches"
        return Unmet("binding", text, "binding: claim")
    text = "its GPUs are offered by a device plugin, which binding claim does not reach"
    return Unmet("binding", text, "binding: early")


def refusal(needs: Needs, device: DeviceClass) -> str | None:
    """The constant text that says why the device does not fit; None: it fits."""
    first = next(iter(unmet(needs, device)), None)
    return None if first is None else first.text


def _model(needs: Needs, device: DeviceClass) -> Iterator[Unmet]:
    for sku in device.skus:
        if needs.skus and sku.id not in needs.skus:
            asked = ",".join(needs.skus)
            yield Unmet("sku", f"{sku.id}: sku {asked} asked", f"sku: {asked},{sku.id}")
        if sku.id in needs.not_skus:
            yield Unmet("not-sku", f"{sku.id}: excluded by not-sku", f"no {sku.id} in not-sku")


def _kind(needs: Needs, device: DeviceClass, name: str) -> Iterator[Unmet]:
    if needs.mig and (device.mode != needs.mig or device.kind == "shared"):
        yield Unmet("mig", f"{name}: MIG profile {needs.mig} asked", "no mig")
        return
    if device.kind == "slice" and needs.share == "whole":
        yield Unmet("share", f"{name}: a slice, whole devices asked", "share: slice")
    if device.kind == "shared" and needs.share != "any":
        asked = "whole devices" if needs.share == "whole" else "no time-sharing"
        yield Unmet("share", f"{name}: time-shared, {asked} asked", "share: any")
    if needs.gpus > 1 and device.kind == "shared":
        yield Unmet("gpus", f"{name}: several time-shared devices may be one GPU", "gpus: 1")
    elif needs.gpus > 1 and device.kind == "slice" and not vendors.VENDORS[device.vendor].several_partitions:
        yield Unmet("gpus", f"{name}: a container can use one MIG instance only", "gpus: 1")


def _memory(needs: Needs, device: DeviceClass, name: str) -> Iterator[Unmet]:
    if needs.memory_bytes is None:
        return
    if device.memory_mib is None:
        yield Unmet("memory", f"{name}: memory unknown, {needs.memory_text} asked", "no memory")
    elif needs.memory_bytes > device.memory_mib * quantities.MIB:
        has = quantities.gib(device.memory_mib)
        if quantities.units(has.replace(" GiB", "Gi")) >= needs.memory_bytes:
            has = f"{math.floor(device.memory_mib)} MiB"  # rounding to GiB would hide what is missing
        if needs.workload is not None:
            where = "1 GPU" if needs.gpus == 1 else f"each of {needs.gpus} GPUs"
            text = f"{name}: {has} of memory, {needs.memory_text} needed by {needs.workload.profile.id} on {where}"
            yield Unmet("memory", text, _more_devices(needs, needs.workload, device))
            return
        hint = _decimal_hint(needs.memory_text or "", device.memory_mib)
        text = f"{name}: {has} of memory, {needs.memory_text} asked{hint}"
        yield Unmet("memory", text, f"memory: {_at_most(device)}")


def _more_devices(needs: Needs, workload: models.Workload, device: DeviceClass) -> str | None:
    """The number of such devices that would hold the pod's model; None: none would, or the pod itself asks its GPUs."""
    if device.memory_mib is None or device.kind != "whole" or needs.resources:
        return None
    enough = workload.fewest(device.memory_mib * quantities.MIB)
    return f"gpus: {enough}" if enough else None


def _decimal_hint(asked: str, memory_mib: float) -> str:
    """Data sheets count in 10^9 bytes: say so where the same number of G, in place of Gi, would fit."""
    decimal = asked.removesuffix("i").replace("K", "k")
    fits = decimal != asked and quantities.units(decimal) <= memory_mib * quantities.MIB
    return f" ({decimal} would fit)" if fits else ""


def _at_most(device: DeviceClass) -> str:
    """The largest memory annotation that the device meets, in Gi with one decimal, rounded down."""
    tenths = math.floor((device.memory_mib or 0) / 1024 * 10)
    return f"{tenths / 10:.1f}".removesuffix(".0") + "Gi"


def _compute(needs: Needs, device: DeviceClass, sku: Sku) -> Iterator[Unmet]:
    for number_format in needs.precision:
        if number_format not in sku.formats:
            yield Unmet("precision", f"{sku.id}: no native {number_format}", f"precision without {number_format}")
    if needs.matrix_cores == "required":
        if sku.matrix_unit is None:
            yield Unmet("matrix-cores", f"{sku.id}: no matrix cores", "matrix-cores: preferred")
        else:
            for number_format in needs.precision:
                if number_format in sku.formats and number_format not in sku.matrix_formats:
                    text = f"{sku.id}: no matrix cores for {number_format}"
                    yield Unmet("matrix-cores", text, "matrix-cores: preferred")
    if needs.tflops is not None:
        yield from _at_least(
            "tflops",
            f"TFLOPS at {needs.rate_format}",
            tflops(needs, device, sku),
            needs.tflops,
            sku.id,
        )
    if needs.bandwidth_gbs is not None:
        yield from _at_least("bandwidth", "GB/s", bandwidth(device, sku), needs.bandwidth_gbs, sku.id)
    if needs.interconnect == "required" and needs.gpus > 1:
        if device.kind != "whole":
            yield Unmet("interconnect", f"{device.label}: slices share no link", "interconnect: preferred")
        elif sku.link.reach == "bridge":
            text = f"{sku.id}: {sku.link.name} is optional and nothing reports it"
            yield Unmet("interconnect", text, "interconnect: preferred")
        elif len(device.skus) > 1:
            yield Unmet("interconnect", f"{device.label}: mixed models share no island", "interconnect: preferred")
        elif sku.link.reach == "none":
            text = f"{sku.id}: {sku.link.name} only, no NVLink or xGMI"
            yield Unmet("interconnect", text, "interconnect: preferred")


def _forbidden(needs: Needs, device: DeviceClass) -> Iterator[Unmet]:
    """What the pod's policies do not allow; no change of the pod would help."""
    for rule in needs.policy.rules:
        texts = [rule.forbids_vendor(device.vendor), *(rule.forbids_sku(sku.id) for sku in device.skus)]
        if device.skus:
            texts.append(rule.forbids_price(_models(device), device.price_usd_hour))
        yield from (Unmet("policy", text, None) for text in texts if text)


def _price(needs: Needs, device: DeviceClass) -> Iterator[Unmet]:
    if needs.max_price_usd_hour is None:
        return
    name, price = _models(device), device.price_usd_hour
    if price is None:
        yield Unmet("max-price", f"{name}: no price stated", "no max-price")
    elif price > needs.max_price_usd_hour:
        text = f"{name}: {price:g} USD an hour, at most {needs.max_price_usd_hour:g} asked"
        yield Unmet("max-price", text, f"max-price: {price:g}")


def _models(device: DeviceClass) -> str:
    return "/".join(sku.id for sku in device.skus)


def _at_least(key: str, unit: str, has: float | None, asked: float, name: str) -> Iterator[Unmet]:
    if has is None:
        yield Unmet(key, f"{name}: {unit} not stated, {asked:g} asked", f"no {key}")
    elif has < asked:
        floor = math.floor(has * 100) / 100
        yield Unmet(key, f"{name}: {floor:g} {unit}, {asked:g} asked", f"{key}: {floor:g}")


def tflops(needs: Needs, device: DeviceClass, sku: Sku) -> float | None:
    """Dense TFLOPS that a pod gets of one device at the needs' first format; None: not stated."""
    rate = sku.rate(needs.rate_format, matrix=needs.matrix_cores == "required")
    return rate * device.compute_share if rate is not None and device.compute_share is not None else None


def bandwidth(device: DeviceClass, sku: Sku) -> float | None:
    """Memory bandwidth in GB/s that a pod gets of one device; None: not stated."""
    return sku.bandwidth * device.memory_share if sku.bandwidth and device.memory_share is not None else None


def possible(catalogue: Catalogue) -> Iterator[DeviceClass]:
    """Every device class that the capability DB's models could be offered as, at the least price there is for each."""
    for sku in catalogue:
        yield from possible_classes(sku, catalogue.cheapest(sku))


def possible_classes(sku: Sku, price_usd_hour: float | None = None) -> Iterator[DeviceClass]:
    """Every way a node could offer a model: whole and partitioned, by device plugin and by DRA driver.

    Sharing adds nothing that these do not have. A price that is None is the one that the SKU states itself.
    """
    price_usd_hour = sku.price_usd_hour if price_usd_hour is None else price_usd_hour
    vendor = vendors.VENDORS[sku.vendor]
    driver = (vendor.driver.name,) if vendor.driver.publishes(sku) else ()

    def device(
        resource: str, kind: node_facts.Kind, mode: str | None, memory: float, share: partitions.Share
    ) -> DeviceClass:
        return DeviceClass(
            resource=resource,
            vendor=sku.vendor,
            kind=kind,
            skus=(sku,),
            memory_mib=memory,
            memory_reported=False,
            mode=mode,
            memory_share=share.memory,
            compute_share=share.compute,
            replicas=1,
            evidence="capability DB",
            dra=resource in driver,
            price_usd_hour=price_usd_hour,
        )

    whole = partitions.Share(memory=1.0, compute=1.0)
    for resource in (*(sku.resources or vendor.resources), *driver):
        yield device(resource, "whole", None, sku.memory_mib, whole)
    if sku.mig:
        geometry = partitions.mig_geometry(sku.mig)
        for profile in geometry.profiles:
            memory = partitions.mig_memory_mib(sku.memory_mib, geometry, profile)
            share = partitions.mig_share(geometry, profile)
            for resource in (vendor.partition_name(profile.name), vendor.resources[0], *driver):
                yield device(resource, "slice", profile.name, memory, share)
    for compute in sku.compute_modes:
        parts = partitions.amd_parts(sku, compute) or 0
        for memory_mode in partitions.amd_memory_modes(sku, compute):
            mode = f"{compute}_{memory_mode}".lower()
            if parts == 1:
                yield device(vendor.partition_name(mode), "whole", None, sku.memory_mib, whole)
                continue
            share = partitions.Share(memory=1 / parts, compute=1 / parts)
            for resource in (vendor.partition_name(mode), vendor.resources[0], *driver):
                yield device(resource, "slice", mode, sku.memory_mib / parts, share)


def impossible(needs: Needs, catalogue: Catalogue, live: list[DeviceClass]) -> str | None:
    """Why no GPU could ever meet the needs, whatever model of the DB in whatever partitioning; None: one could.

    Names the single need that nothing meets where there is one, else what the closest model lacks. What only the pod's
    policies rule out is said to be theirs.
    """
    rules = needs.policy.rules
    if rules:
        free = needs.model_copy(update={"policy": needs.policy.without_rules()})
        return impossible(free, catalogue, live) or _ruled_out(needs, [*live, *possible(catalogue)])
    lacking: list[list[Unmet]] = []
    devices = [*live, *possible(catalogue)]
    for device in devices:
        missing = unmet(needs, device)
        if not missing:
            return None
        if device.skus and missing[0].key not in ("resource", "binding", "problem"):
            lacking.append(missing)
    if not lacking:
        return f"no GPU model of the capability DB is offered as {' or '.join(needs.resources)}"
    named = {"sku", "not-sku", "vendor", "mig"}
    closest = min(
        lacking,
        key=lambda missing: (
            len({each.key for each in missing} & named),
            len({each.key for each in missing}),
            _gap(missing),
        ),
    )
    # Memory that a model needs is asked by the annotation that names the model.
    asked_by = {"memory": "model"} if needs.workload else {}
    blamed = [key for key in _ORDER if all(any(each.key == key for each in missing) for missing in lacking)]
    if blamed:
        key = blamed[0]
        nearest = min((each for missing in lacking for each in missing if each.key == key), key=lambda e: _gap([e]))
        key = asked_by.get(key, key)
        return f"anygpu.io/{key}: no GPU model in the capability DB meets this; the closest is {nearest.text}"
    keys = ", ".join(
        f"anygpu.io/{asked_by.get(key, key)}" for key in _ORDER if any(each.key == key for each in closest)
    )
    texts = "; ".join(dict.fromkeys(each.text for each in closest))
    return f"{keys}: no GPU model in the capability DB meets this together with the other needs; the closest is {texts}"


def _ruled_out(needs: Needs, devices: Iterable[DeviceClass]) -> str | None:
    """Why the policies leave nothing that meets the needs; None: they leave something."""
    texts: dict[str, None] = {}
    for device in devices:
        missing = unmet(needs, device)
        if not missing:
            return None
        if all(each.key == "policy" for each in missing):
            texts |= dict.fromkeys(each.text for each in missing)
    shown = [*list(texts)[:3], *([f"and {len(texts) - 3} more reasons"] if len(texts) > 3 else [])]
    rules = [rule for rule in needs.policy.rules if any(rule.who in text for text in texts)]
    return f"no GPU model that meets the pod's needs is allowed: {'; '.join(shown)}; {policies.who_can_change(rules)}"


_ORDER = (
    "memory",
    "precision",
    "tflops",
    "bandwidth",
    "max-price",
    "mig",
    "matrix-cores",
    "interconnect",
    "sku",
    "not-sku",
    "vendor",
    "share",
    "gpus",
)


def _gap(missing: list[Unmet]) -> float:
    """How far a device is from the needs: smaller is closer. Only ranks texts for people."""
    total = 0.0
    for each in missing:
        figure = (each.change or "").partition(": ")[2].removesuffix("Gi")
        try:
            total += 1 / (1 + float(figure))
        except ValueError:
            total += 1.0
    return total
