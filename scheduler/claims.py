"""Claim binding, the pure part: Needs -> a ResourceClaimTemplate, the DeviceClasses we ship, and what a claim was given

What a selector cannot say: that two GPUs are on one NVLink or xGMI island (it admits models of which all GPUs of a node
are), and that of one node's devices the best is taken (kube-scheduler takes the first that it selects).

ClaimError              what a claim says cannot be bound
├── NotAllocated        nothing was allocated to it
├── UnknownDriver       a driver that is none of ours allocated a device
└── SeveralVendors      no image runs on what it was allocated
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from capability_db import errors as capability_errors
from capability_db import node_facts, quantities, slices, vendors
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass
from capability_db.sku import FORMATS, Sku, VendorName
from scheduler import errors, fit, kube, score
from scheduler.needs import Needs

Json = dict[str, Any]

API_VERSION = "resource.k8s.io/v1"
GPU_RESOURCE = "anygpu.io/gpu"
"""The extended resource of the neutral DeviceClass, for pods of users' own that need nothing in particular. We never
inject it: where a bind's answer is lost kube-scheduler deletes the claim behind it, though the pod is bound
(kubernetes pkg/scheduler/framework/plugins/dynamicresources, unreserveExtendedResourceClaim)."""
MARKER = "anygpu.io/claim"
"""What pods with a claim of ours ask besides: it only brings the extender in, which is not called for claims alone."""
CLAIM_NAME = "anygpu"
"""The claim in the pod's spec, and in the container's."""
REQUEST = "gpu"
TEMPLATE_LABEL = "anygpu.io/claim-template"
NEUTRAL_CLASS = "anygpu"
NEUTRAL_VENDORS: tuple[VendorName, ...] = ("nvidia", "amd")
MAX_ALTERNATIVES = 8
"""FirstAvailableDeviceRequestMaxSize."""
MAX_EXPRESSION = 10 * 1024
"""CELSelectorExpressionMaxLength, in bytes."""

_AND = " &&\n"
_KINDS: tuple[node_facts.Kind, ...] = ("whole", "slice", "shared")


class ClaimError(errors.AnygpuError):
    """What a claim says cannot be bound; nothing was changed."""


class NotAllocated(ClaimError):
    """Nothing was allocated to the claim."""


class UnknownDriver(ClaimError):
    """A driver that is none of ours allocated a device."""


class SeveralVendors(ClaimError):
    """The allocated devices are of several vendors, so no image runs on all."""


# --- Needs -> a template ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Alternative:
    """The devices of one vendor and kind that meet the needs."""

    vendor: vendors.Vendor
    kind: node_facts.Kind
    rank: score.Rank
    """Of the best of them."""
    modes: dict[str, set[str]]
    """SKU id -> the modes of its slices; of other kinds the mode is left open."""

    @property
    def name(self) -> str:
        """The subrequest's name: `nvidia`, `amd-slice`."""
        return self.vendor.name if self.kind == "whole" else f"{self.vendor.name}-{self.kind}"


def template_spec(
    needs: Needs, admitted: Mapping[VendorName, Collection[str]], catalogue: Catalogue, seen: Iterable[DeviceClass]
) -> Json:
    """The spec of the ResourceClaimTemplate for a pod's needs: one alternative a vendor and kind, the best first.

    `admitted` are the SKUs on which the pod's images run, `seen` the device classes that nodes offer. Raises
    NothingFits where no device of a DRA driver could serve, InvalidInput where the SKUs are too many for one selector.
    """
    found = _alternatives(needs, admitted, catalogue, seen)[:MAX_ALTERNATIVES]
    if not found:
        names = ", ".join(vendors.VENDORS[name].driver.name for name in vendors.VENDORS if admitted.get(name))
        raise errors.NothingFits(
            f"binding claim: no GPU that a DRA driver ({names or 'for which the image has a variant'}) publishes meets "
            "the pod's needs; drop anygpu.io/binding or relax the needs"
        )
    constraints = [constraint for each in found for constraint in _constraints(needs, each)]
    devices: Json = {
        "requests": [
            {"name": REQUEST, "firstAvailable": [_subrequest(needs, each, catalogue) for each in found]},
        ]
    }
    if constraints:
        devices["constraints"] = constraints
    return {"spec": {"devices": devices}}


def template_name(spec: Json) -> str:
    """The template's name: the same for the same spec, so that pods of equal needs share one."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"anygpu-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"


def template(namespace: str, spec: Json) -> Json:
    """The ResourceClaimTemplate as the API takes it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": template_name(spec), "namespace": namespace, "labels": {TEMPLATE_LABEL: "true"}},
        "spec": spec,
    }


def _alternatives(
    needs: Needs, admitted: Mapping[VendorName, Collection[str]], catalogue: Catalogue, seen: Iterable[DeviceClass]
) -> list[_Alternative]:
    found: dict[tuple[VendorName, node_facts.Kind], _Alternative] = {}
    for device in (*_possible(catalogue), *(device for device in seen if device.dra)):
        if not {sku.id for sku in device.skus} <= {*admitted.get(device.vendor, ())} or fit.unmet(needs, device):
            continue
        rank = score.rank(needs, device)
        vendor = vendors.VENDORS[device.vendor]
        each = found.setdefault((device.vendor, device.kind), _Alternative(vendor, device.kind, rank, {}))
        each.rank = min(each.rank, rank)
        for sku in device.skus:
            each.modes.setdefault(sku.id, set()).update([device.mode] if device.mode else [])
    order = list(vendors.VENDORS)
    return sorted(found.values(), key=lambda each: (each.rank, _KINDS.index(each.kind), order.index(each.vendor.name)))


def _possible(catalogue: Catalogue) -> Iterator[DeviceClass]:
    """Every way a DRA driver could publish a GPU: whole, cut, or whole and shared."""
    for device in fit.possible(catalogue):
        if device.dra:
            yield device
            if device.kind == "whole":
                yield dataclasses.replace(device, kind="shared", memory_share=None, compute_share=None, replicas=None)


def _subrequest(needs: Needs, each: _Alternative, catalogue: Catalogue) -> Json:
    expression = _selector(each, needs.memory_bytes, catalogue)
    size = len(expression.encode())
    if size > MAX_EXPRESSION:
        raise errors.InvalidInput(
            f"binding claim: the {each.vendor.title} GPUs that meet the needs make a selector of {size} bytes; "
            f"Kubernetes takes {MAX_EXPRESSION} at most; name fewer with anygpu.io/sku"
        )
    request: Json = {
        "name": each.name,
        "deviceClassName": vendor_class(each.vendor),
        "allocationMode": "ExactCount",
        "count": needs.gpus,
        "selectors": [{"cel": {"expression": expression}}],
    }
    if each.kind == "shared" and needs.memory_bytes is not None:
        # What is taken of the shared device; without it, all of it or what its driver says.
        request["capacity"] = {"requests": {each.vendor.driver.memory: str(needs.memory_bytes)}}
    return request


def _constraints(needs: Needs, each: _Alternative) -> Iterator[Json]:
    """Several devices are of one model and cut alike, as they are under a device plugin's resource name."""
    if needs.gpus > 1:
        driver = each.vendor.driver
        for attribute in (driver.product, *([driver.profile] if each.kind == "slice" and driver.profile else [])):
            yield {"matchAttribute": f"{driver.name}/{attribute}", "requests": [f"{REQUEST}/{each.name}"]}


# --- Selectors --------------------------------------------------------------------------------------------------------
# To refer to an attribute that a device lacks is an error that ends the allocation: hence `"x" in a ?` everywhere.
# CEL knows `allowMultipleAllocations` where DRAConsumableCapacity is on: by default since Kubernetes 1.36.


def _selector(each: _Alternative, memory_bytes: int | None, catalogue: Catalogue) -> str:
    """CEL that selects exactly the devices of a vendor and kind which `fit.unmet` lets through."""
    driver = each.vendor.driver
    types = {"whole": [driver.whole], "slice": [driver.slice]}.get(each.kind, [driver.whole, driver.slice])
    terms = _of_type(driver, types)
    skus = [sku for sku in catalogue if sku.id in each.modes]
    if each.kind == "slice":
        alike: dict[tuple[str, ...], list[Sku]] = {}
        for sku in skus:
            alike.setdefault(tuple(sorted(map(vendors.mode_key, each.modes[sku.id]))), []).append(sku)
        cut = (f"{_of_model(each.vendor, same, catalogue)} && mode in {_texts(m)}" for m, same in alike.items())
        terms.append(_any(cut))
    else:
        terms.append(_of_model(each.vendor, skus, catalogue))
    if memory_bytes is not None:
        terms.append(f'{_text(driver.memory)} in c && c.{driver.memory}.compareTo(quantity("{memory_bytes}")) >= 0')
    shared = "device.allowMultipleAllocations" if each.kind == "shared" else "!device.allowMultipleAllocations"
    asked = {
        "a",
        "kind",
        "product",
        "id",
        *(["mode"] if each.kind == "slice" else []),
        *(["c"] if memory_bytes else []),
    }
    return _AND.join([_of_driver(driver), shared, _with_values(driver, asked, terms)])


def _of_driver(driver: vendors.Driver) -> str:
    return f"device.driver == {_text(driver.name)}"


def _with_values(driver: vendors.Driver, asked: Collection[str], terms: Iterable[str]) -> str:
    """The terms, all of which must hold, with what they refer to: attributes and capacities, and texts in one form."""
    values = {
        "a": f"device.attributes[{_text(driver.name)}]",
        "c": f"device.capacity[{_text(driver.name)}]",
        "kind": _value(driver.type if driver.whole else None, ""),
        "product": _value(driver.product, f'.replace(" ", {_text(driver.space)})'),  # as the catalogue has it
        "id": _value(driver.pci, '.lowerAscii().replace("0x", "")'),  # as vendors.pci_id has it
        "mode": _value(driver.profile, '.lowerAscii().replace("+", ".")'),  # as vendors.mode_key has it
    }
    bound = [f"cel.bind({name}, {value},\n" for name, value in values.items() if value and name in asked]
    return "".join(bound) + _AND.join(terms) + ")" * len(bound)


def _value(attribute: str | None, form: str) -> str | None:
    """An attribute's text in a form; empty where the device lacks it."""
    return attribute and f'{_text(attribute)} in a ? a.{attribute}{form} : ""'


def _of_type(driver: vendors.Driver, types: Iterable[str | None]) -> list[str]:
    return [f"kind in {_texts(each for each in types if each)}"] if driver.whole else []


def _of_model(vendor: vendors.Vendor, skus: Collection[Sku], catalogue: Catalogue) -> str:
    """CEL for devices that are of one of the models, as `Vendor.identify_published` tells them."""
    driver = vendor.driver
    products = sorted(name for sku in skus for name in driver.products(sku))
    ids = sorted(each for sku in skus for each in driver.pci_ids(sku))
    if driver.pci is None:
        return f"product in {_texts(products)}"
    # An id that is known decides; the name does where the id says nothing.
    known = sorted(each for sku in catalogue if sku.vendor == vendor.name for each in driver.pci_ids(sku))
    terms = [f"id in {_texts(ids)}"] if ids else []
    if products:
        terms.append(f"!(id in {_texts(known)}) && product in {_texts(products)}")
    return _any(terms)


def _any(terms: Iterable[str]) -> str:
    """CEL of which one term must hold."""
    return "(" + " ||\n".join(terms) + ")"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _texts(values: Iterable[str]) -> str:
    return "[" + ", ".join(map(_text, values)) + "]"


# --- DeviceClasses ----------------------------------------------------------------------------------------------------


def vendor_class(vendor: vendors.Vendor) -> str:
    """The name of the shipped DeviceClass of one vendor's GPUs."""
    return f"{vendor.name}.anygpu.io"


def device_classes(catalogue: Catalogue) -> list[Json]:
    """The DeviceClasses that are shipped: neutral, one a vendor, and for each number format that some GPU computes."""
    found = [_device_class(NEUTRAL_CLASS, _whole(Needs(binding="claim"), NEUTRAL_VENDORS, catalogue))]
    found[0]["spec"]["extendedResourceName"] = GPU_RESOURCE
    for vendor in vendors.VENDORS.values():
        driver = vendor.driver
        kinds = _of_type(driver, [driver.whole, driver.slice])
        terms = [_of_driver(driver), *([_with_values(driver, {"a", "kind"}, kinds)] if kinds else [])]
        found.append(_device_class(vendor_class(vendor), _AND.join(terms)))
    for number_format in FORMATS:
        asked = Needs(binding="claim", precision=(number_format,))
        matrix = asked.model_copy(update={"matrix_cores": "required"})
        for name, needs in ((number_format, asked), (f"{number_format}-matrix", matrix)):
            if expression := _whole(needs, vendors.VENDORS, catalogue):
                found.append(_device_class(f"{name}.anygpu.io", expression))
    return found


def _whole(needs: Needs, names: Iterable[VendorName], catalogue: Catalogue) -> str:
    """CEL for all whole devices of some vendors that meet the needs."""
    admitted = {name: {sku.id for sku in catalogue if sku.vendor == name} for name in names}
    found = _alternatives(needs, admitted, catalogue, ())
    found.sort(key=lambda each: list(vendors.VENDORS).index(each.vendor.name))
    return " ||\n".join(f"({_selector(each, None, catalogue)})" for each in found if each.kind == "whole")


def _device_class(name: str, expression: str) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": "DeviceClass",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "anygpu"}},
        "spec": {"selectors": [{"cel": {"expression": expression}}]},
    }


# --- A claim -> what it got -------------------------------------------------------------------------------------------


class Result(kube.Base, frozen=True):
    """One device that was allocated."""

    driver: str = ""
    pool: str = ""
    device: str = ""
    admin_access: bool | None = None
    consumed_capacity: dict[str, str | int] | None = None


class AllocatedDevices(kube.Base, frozen=True):
    """What of an allocation's devices matters."""

    results: list[Result] | None = None


class Allocation(kube.Base, frozen=True):
    """What kube-scheduler gave a claim."""

    devices: AllocatedDevices = AllocatedDevices()


class ClaimStatus(kube.Base, frozen=True):
    """What of a claim's status matters."""

    allocation: Allocation | None = None


class Claim(kube.Base, frozen=True):
    """A ResourceClaim."""

    metadata: kube.Metadata = kube.Metadata()
    status: ClaimStatus = ClaimStatus()


def to_claim(document: Mapping[str, Any]) -> Claim:
    """A claim from parsed JSON; raises msgspec.ValidationError naming the field that is not as the API has it."""
    return msgspec.convert(document, Claim)


def claim_name(pod: Mapping[str, Any]) -> str | None:
    """The name of the claim that holds a pod's GPUs, from the pod's JSON; None: it has none, or it is not made yet."""
    status = pod.get("status") or {}
    made = (status.get("extendedResourceClaimStatus") or {}).get("resourceClaimName")
    for each in status.get("resourceClaimStatuses") or ():
        if each.get("name") == CLAIM_NAME:
            made = each.get("resourceClaimName")
    return made


def allocated(claim: Claim) -> tuple[slices.Key, ...]:
    """The devices that a claim was allocated, all of one vendor; raises ClaimError saying why nothing can be bound."""
    name = f"ResourceClaim {claim.metadata.namespace or 'default'}/{claim.metadata.name}"
    results = (claim.status.allocation.devices.results if claim.status.allocation else None) or []
    if not results:
        raise NotAllocated(f"{name}: nothing is allocated to it; kube-scheduler allocates before it binds")
    for each in results:
        if vendors.of_driver(each.driver) is None:
            known = ", ".join(sorted(vendor.driver.name for vendor in vendors.VENDORS.values()))
            raise UnknownDriver(f"{name}: driver {each.driver} is unknown to anygpu (it knows {known})")
    if len({each.driver for each in results}) > 1:
        drivers = " and ".join(sorted({each.driver for each in results}))
        raise SeveralVendors(f"{name}: devices of {drivers} are allocated to it, and no image runs on both")
    return tuple((each.driver, each.pool, each.device) for each in results)


def taken(claims: Iterable[Claim]) -> Iterator[slices.Taken]:
    """Every device, or part of one, that claims of whatever driver hold; looking on (adminAccess) takes nothing."""
    for claim in claims:
        results = claim.status.allocation.devices.results if claim.status.allocation else None
        for each in results or ():
            if not each.admin_access:
                yield slices.Taken((each.driver, each.pool, each.device), _consumed(each))


def _consumed(result: Result) -> int | None:
    vendor = vendors.of_driver(result.driver)
    amount = (result.consumed_capacity or {}).get(vendor.driver.memory) if vendor else None
    try:
        return None if amount is None else quantities.units(amount)
    except capability_errors.QuantityError:
        return None
