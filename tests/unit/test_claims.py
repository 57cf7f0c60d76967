"""Needs -> a ResourceClaimTemplate, the DeviceClasses that are shipped, and what a claim was given."""

import dataclasses
import re
from typing import Any

import dranodes
import msgspec
import pytest

from capability_db import slices
from capability_db.catalogue import Catalogue
from capability_db.node_facts import DeviceClass
from capability_db.sku import VendorName
from scheduler import claims, errors, needs

BUILTIN = Catalogue.builtin()
VENDORS: tuple[VendorName, ...] = ("nvidia", "amd", "intel")
EVERY = {name: frozenset(sku.id for sku in BUILTIN if sku.vendor == name) for name in VENDORS}
BOTH = {"nvidia": EVERY["nvidia"], "amd": EVERY["amd"]}


def ask(**stated: str) -> needs.Needs:
    """The needs of annotations given without prefix; `_` stands for `-`."""
    keys = {f"anygpu.io/{key.replace('_', '-')}": value for key, value in stated.items()}
    return needs.parse({"anygpu.io/binding": "claim"} | keys, BUILTIN)


def seen(*devices: Any, driver: str = "gpu.nvidia.com") -> list[DeviceClass]:
    part = msgspec.convert(dranodes.resource_slice("n", driver, list(devices)), slices.ResourceSlice)
    return [pool.device for pool in slices.pools([part], BUILTIN)]


def devices_of(asked: needs.Needs, admitted: Any = EVERY, there: Any = ()) -> Any:
    return claims.template_spec(asked, admitted, BUILTIN, there)["spec"]["devices"]


def alternatives(asked: needs.Needs, admitted: Any = EVERY, there: Any = ()) -> dict[str, Any]:
    """Subrequest name -> subrequest, in their order."""
    (request,) = devices_of(asked, admitted, there)["requests"]
    assert request["name"] == "gpu"
    return {each["name"]: each for each in request["firstAvailable"]}


def selector(subrequest: Any) -> str:
    (only,) = subrequest["selectors"]
    expression: str = only["cel"]["expression"]
    return expression


def claim(*results: tuple[str, str, str], **more: Any) -> claims.Claim:
    found = [
        dict(zip(("request", "driver", "pool", "device"), ("gpu/x", *each), strict=True)) | more for each in results
    ]
    return claims.to_claim(
        {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"name": "p-anygpu-7x", "namespace": "ml"},
            "spec": {"devices": {"requests": []}},
            "status": {"allocation": {"devices": {"results": found}}, "reservedFor": [{"name": "p"}]},
        }
    )


# --- Templates --------------------------------------------------------------------------------------------------------


def test_a_template_asks_whole_gpus_of_each_vendor_of_the_shipped_classes() -> None:
    found = alternatives(ask(memory="40Gi"), BOTH)
    assert set(found) == {"nvidia", "amd"}
    for name, each in found.items():
        assert each["deviceClassName"] == f"{name}.anygpu.io"
        assert (each["allocationMode"], each["count"]) == ("ExactCount", 1)
        assert "capacity" not in each
        assert f'device.driver == "gpu.{name}.com" &&\n!device.allowMultipleAllocations &&' in selector(each)
        assert 'c.memory.compareTo(quantity("42949672960")) >= 0' in selector(each)


def test_only_models_that_meet_the_needs_are_named() -> None:
    found = selector(alternatives(ask(precision="fp8", memory="100Gi"), BOTH)["nvidia"])
    assert '"NVIDIA-H200"' in found
    assert "A100" not in found
    assert "H100" not in found


def test_only_models_on_which_the_images_run_are_named() -> None:
    found = alternatives(ask(), {"nvidia": {"l4", "h100-sxm"}, "amd": set()})
    assert list(found) == ["nvidia"]
    assert 'product in ["NVIDIA-H100-80GB-HBM3", "NVIDIA-L4"]' in selector(found["nvidia"])


@pytest.mark.parametrize("order", ["amd,nvidia", "nvidia,amd", "intel,amd,nvidia"])
def test_the_pods_vendor_order_is_the_order_of_alternatives(order: str) -> None:
    assert list(alternatives(ask(vendor=order))) == order.split(",")


def test_without_an_order_the_best_rank_comes_first() -> None:
    """Pack: the least capable GPU that fits; of these two that is the MI300X."""
    asked = ask(memory="150G", precision="fp8", sku="b200,mi300x")
    assert list(alternatives(asked)) == ["amd", "nvidia"]
    fastest = ask(memory="150G", precision="fp8", sku="b200,mi300x", objective="speed")
    assert list(alternatives(fastest)) == ["nvidia", "amd"]


def test_slices_are_named_with_their_model() -> None:
    found = alternatives(ask(share="slice", memory="20G", sku="h100-sxm,a100-sxm4-80gb,mi300x"))
    assert set(found) == {"nvidia", "nvidia-slice", "amd", "amd-slice"}
    text = selector(found["nvidia-slice"])
    assert 'kind in ["mig"]' in text
    assert re.search(r'product in \["A100-SXM4-80GB", [^]]*\] && mode in \["1g.20gb", [^]]*"7g.80gb"\]', text)
    text = selector(found["amd-slice"])
    assert 'kind in ["amdgpu-partition"]' in text
    assert '"cpx_nps4"' in text


def test_a_mig_profile_asks_that_profile_of_every_model_that_has_it() -> None:
    found = alternatives(ask(mig="1g.10gb+me"))
    assert list(found) == ["nvidia-slice"]
    assert 'mode in ["1g.10gb.me"]' in selector(found["nvidia-slice"])
    assert '"1g.10gb"' not in selector(found["nvidia-slice"])


def test_sharing_takes_the_memory_that_is_asked_and_no_more() -> None:
    found = alternatives(ask(share="any", memory="3Gi"))
    assert len(found) == 8
    assert {name for name, each in found.items() if "capacity" in each} == {
        "nvidia-shared",
        "amd-shared",
        "intel-shared",
    }
    shared = found["nvidia-shared"]
    assert shared["capacity"] == {"requests": {"memory": str(3 * 2**30)}}
    assert "\ndevice.allowMultipleAllocations &&" in selector(shared)
    assert 'kind in ["gpu", "mig"]' in selector(shared)


def test_sharing_without_memory_leaves_it_to_the_driver_how_much_is_taken() -> None:
    assert "capacity" not in alternatives(ask(share="any"))["nvidia-shared"]


@pytest.mark.parametrize("stated", [{"tflops": "10"}, {"bandwidth": "100"}, {"gpus": "2"}])
def test_what_a_shared_device_does_not_promise_leaves_it_out(stated: dict[str, str]) -> None:
    assert not any("shared" in name for name in alternatives(ask(share="any", **stated)))


def test_several_devices_are_of_one_model_and_cut_alike() -> None:
    found = devices_of(ask(gpus="4", share="slice"), BOTH)
    assert all(each["count"] == 4 for each in found["requests"][0]["firstAvailable"])
    assert sorted((each["matchAttribute"], each["requests"][0]) for each in found["constraints"]) == [
        ("gpu.amd.com/partitionProfile", "gpu/amd-slice"),
        ("gpu.amd.com/productName", "gpu/amd"),
        ("gpu.amd.com/productName", "gpu/amd-slice"),
        ("gpu.nvidia.com/productName", "gpu/nvidia"),
    ]
    assert "constraints" not in devices_of(ask())


def test_an_island_is_asked_by_the_models_of_which_a_nodes_gpus_are_one() -> None:
    found = selector(alternatives(ask(gpus="2", interconnect="required"), BOTH)["nvidia"])
    assert '"NVIDIA-H100-80GB-HBM3"' in found
    assert '"NVIDIA-L4"' not in found
    assert '"NVIDIA-H100-PCIe"' not in found


def test_what_nodes_report_counts_besides_the_database() -> None:
    """A driver that reports 16 GiB of a T4, of which the DB says 15; a profile that the DB does not list."""
    asked = ask(memory="15.5Gi", share="slice", sku="t4,h100-sxm")
    assert "Tesla-T4" not in selector(alternatives(asked)["nvidia"])
    there = seen(dranodes.nvidia("gpu-0", "t4", memory="16Gi"), dranodes.mig("m", "h100", "2g.33gb", "33Gi"))
    found = alternatives(asked, EVERY, there)
    assert "Tesla-T4" in selector(found["nvidia"])
    assert "2g.33gb" in selector(found["nvidia-slice"])


def test_device_plugins_devices_are_no_matter_for_claims() -> None:
    there = [dataclasses.replace(device, dra=False) for device in seen(dranodes.mig("m", "h100", "2g.33gb", "33Gi"))]
    assert "2g.33gb" not in selector(alternatives(ask(share="slice"), EVERY, there)["nvidia-slice"])


def test_needs_that_no_driver_can_serve_are_refused() -> None:
    with pytest.raises(errors.NothingFits, match=r"no GPU that a DRA driver \(gpu.amd.com\) publishes meets"):
        claims.template_spec(ask(sku="h100-sxm"), {"amd": EVERY["amd"]}, BUILTIN, ())
    with pytest.raises(errors.NothingFits, match="for which the image has a variant"):
        claims.template_spec(ask(), {}, BUILTIN, ())


def test_more_models_than_a_selector_takes_are_refused_with_what_would_help() -> None:
    there = seen(*(dranodes.mig(f"m{number}", "h100", f"{'x' * 50}{number:04d}", "33Gi") for number in range(300)))
    with pytest.raises(errors.InvalidInput, match=r"NVIDIA GPUs .* selector of \d+ bytes; .* 10240 .*anygpu.io/sku"):
        claims.template_spec(ask(share="slice"), EVERY, BUILTIN, there)


def test_a_texts_special_characters_are_quoted() -> None:
    """Attributes are whatever a driver writes."""
    there = seen(dranodes.mig("m", "h100", 'a"] || true || "é\\', "33Gi"))
    found = selector(alternatives(ask(share="slice"), EVERY, there)["nvidia-slice"])
    assert '"a\\"] || true || \\"é\\\\"' in found


def test_equal_needs_share_a_template_and_others_have_their_own() -> None:
    one = claims.template_spec(ask(memory="40Gi"), BOTH, BUILTIN, ())
    same = claims.template_spec(ask(memory="40960Mi", container="main"), BOTH, BUILTIN, ())
    other = claims.template_spec(ask(memory="41Gi"), BOTH, BUILTIN, ())
    assert claims.template_name(one) == claims.template_name(same)
    assert claims.template_name(one) != claims.template_name(other)
    assert re.fullmatch(r"anygpu-[0-9a-f]{16}", claims.template_name(one))


def test_the_order_in_which_devices_were_seen_changes_nothing() -> None:
    there = seen(dranodes.nvidia("gpu-0", "t4", memory="16Gi"), dranodes.mig("m", "h100", "2g.33gb", "33Gi"))
    spec = claims.template_spec(ask(share="slice"), EVERY, BUILTIN, there)
    assert claims.template_spec(ask(share="slice"), EVERY, BUILTIN, there[::-1]) == spec


def test_a_template_is_labelled_as_ours() -> None:
    spec = claims.template_spec(ask(), BOTH, BUILTIN, ())
    assert claims.template("ml", spec) == {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {
            "name": claims.template_name(spec),
            "namespace": "ml",
            "labels": {"anygpu.io/claim-template": "true"},
        },
        "spec": spec,
    }


# --- DeviceClasses ----------------------------------------------------------------------------------------------------


def test_the_shipped_classes_are_neutral_one_a_vendor_and_one_a_format() -> None:
    found = {each["metadata"]["name"]: each for each in claims.device_classes(BUILTIN)}
    assert len(found) == len(claims.device_classes(BUILTIN))
    assert {"anygpu", "nvidia.anygpu.io", "amd.anygpu.io", "intel.anygpu.io"} < set(found)
    assert {"fp8.anygpu.io", "bf16.anygpu.io", "bf16-matrix.anygpu.io", "fp64-matrix.anygpu.io"} < set(found)
    assert {name for name, each in found.items() if "extendedResourceName" in each["spec"]} == {"anygpu"}
    assert found["anygpu"]["spec"]["extendedResourceName"] == "anygpu.io/gpu"
    for name, each in found.items():
        assert re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name)
        assert len(selector(each["spec"])) < claims.MAX_EXPRESSION


def test_a_format_class_names_whole_gpus_that_compute_it() -> None:
    found = {each["metadata"]["name"]: selector(each["spec"]) for each in claims.device_classes(BUILTIN)}
    assert "NVIDIA-H100" in found["fp8.anygpu.io"]
    assert "A100" not in found["fp8.anygpu.io"]
    assert "P100" in found["fp64.anygpu.io"]
    assert "P100" not in found["fp64-matrix.anygpu.io"]
    assert '"mig"' not in found["fp8.anygpu.io"]


# --- What a claim was given -------------------------------------------------------------------------------------------


def test_an_allocation_names_driver_pool_and_device() -> None:
    found = claims.allocated(claim(("gpu.amd.com", "n1", "gpu-0-128"), ("gpu.amd.com", "n1", "gpu-1-129")))
    assert found == (("gpu.amd.com", "n1", "gpu-0-128"), ("gpu.amd.com", "n1", "gpu-1-129"))


@pytest.mark.parametrize("status", [{}, {"allocation": {}}, {"allocation": {"devices": {"results": []}}}])
def test_a_claim_without_allocation_says_so(status: Any) -> None:
    empty = claims.to_claim({"metadata": {"name": "c", "namespace": "ml"}, "status": status})
    with pytest.raises(claims.NotAllocated, match=r"^ResourceClaim ml/c: nothing is allocated to it; kube-"):
        claims.allocated(empty)


def test_a_pods_claim_is_the_one_made_of_our_template_or_of_the_neutral_resource() -> None:
    made = [{"name": "nic", "resourceClaimName": "p-nic-1"}, {"name": "anygpu", "resourceClaimName": "p-anygpu-2"}]
    assert claims.claim_name({"status": {"resourceClaimStatuses": made}}) == "p-anygpu-2"
    neutral = {"resourceClaimName": "p-extended-resources-3", "requestMappings": []}
    assert claims.claim_name({"status": {"extendedResourceClaimStatus": neutral}}) == "p-extended-resources-3"
    for none in ({}, {"status": {}}, {"status": {"resourceClaimStatuses": made[:1]}}):
        assert claims.claim_name(none) is None


def test_a_driver_that_is_none_of_ours_is_named_with_those_that_are() -> None:
    why = (
        "ResourceClaim ml/p-anygpu-7x: driver x.example.com is unknown to anygpu "
        "(it knows gpu.amd.com, gpu.intel.com, gpu.nvidia.com)"
    )
    with pytest.raises(claims.UnknownDriver, match=re.escape(why)):
        claims.allocated(claim(("gpu.amd.com", "n1", "gpu-0-128"), ("x.example.com", "n1", "nic-0")))


def test_devices_of_several_vendors_are_refused() -> None:
    with pytest.raises(claims.SeveralVendors, match=r"devices of gpu\.amd\.com and gpu\.nvidia\.com are allocated"):
        claims.allocated(claim(("gpu.nvidia.com", "n1", "gpu-0"), ("gpu.amd.com", "n1", "gpu-0-128")))


def test_what_claims_hold_is_counted_with_the_memory_that_they_take() -> None:
    whole = claim(("gpu.nvidia.com", "n1", "gpu-0"))
    part = claim(("gpu.nvidia.com", "n1", "gpu-1"), shareID="4a", consumedCapacity={"memory": "3Gi", "shares": "1"})
    other = claim(("nic.example.com", "n1", "nic-0"), consumedCapacity={"memory": "?"})
    looking = claim(("gpu.nvidia.com", "n1", "gpu-2"), adminAccess=True)
    pending = claims.to_claim({"metadata": {"name": "c"}})
    assert list(claims.taken([whole, part, other, looking, pending])) == [
        slices.Taken(("gpu.nvidia.com", "n1", "gpu-0"), None),
        slices.Taken(("gpu.nvidia.com", "n1", "gpu-1"), 3 * 2**30),
        slices.Taken(("nic.example.com", "n1", "nic-0"), None),
    ]
