"""A vendor is one definition: which names are its, and which taints keep only others away."""

import pytest

from capability_db import vendors


@pytest.mark.parametrize(
    ("resource", "vendor", "mode"),
    [
        ("nvidia.com/gpu", "nvidia", None),
        ("nvidia.com/gpu.shared", "nvidia", None),
        ("nvidia.com/mig-1g.5gb", "nvidia", "1g.5gb"),
        ("nvidia.com/mig-1g.5gb.me", "nvidia", "1g.5gb.me"),
        ("nvidia.com/mig-1g.24gb-me", "nvidia", "1g.24gb-me"),
        ("nvidia.com/mig-1g.5gb.shared", "nvidia", "1g.5gb"),
        ("amd.com/gpu", "amd", None),
        ("amd.com/cpx_nps4", "amd", "cpx_nps4"),
        ("amd.com/spx_nps1", "amd", "spx_nps1"),
        ("gpu.intel.com/i915", "intel", None),
        ("gpu.intel.com/xe", "intel", None),
        ("habana.ai/gaudi", "intel", None),
    ],
)
def test_every_name_of_a_device_plugin_has_its_vendor(resource: str, vendor: str, mode: str | None) -> None:
    found = vendors.of_resource(resource)
    assert found is not None
    assert (found.name, found.mode_in(resource)) == (vendor, mode)


@pytest.mark.parametrize(
    "resource",
    [
        "cpu",
        "",
        "nvidia.com/",
        "nvidia.com/gpux",
        "nvidia.com/gpu.shared.shared",
        "nvidiaxcom/gpu",
        "NVIDIA.com/gpu",
        "amd.com/gpu.shared",
        "amd.com/epyc_nps4",
        "amd.com/cpx_nps3",
        "gpu.intel.com/i915_monitoring",
        "gpu.intel.com/",
        "hugepages-2Mi",
        "x/nvidia.com/gpu",
        "nvidia.com/gpu\n",
        "nvidia.com/mig-1g.5gb\n",
    ],
)
def test_other_names_are_nobodys(resource: str) -> None:
    assert vendors.of_resource(resource) is None


def test_gpu_resources_are_found_in_order_among_others() -> None:
    assert vendors.gpu_resources(["cpu", "amd.com/gpu", "memory", "nvidia.com/gpu"]) == [
        "amd.com/gpu",
        "nvidia.com/gpu",
    ]


def test_every_known_name_is_found_again_and_once() -> None:
    names = vendors.known_resources()
    assert len(names) == len({*names})
    assert {"nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb.me", "amd.com/cpx_nps4"} <= {*names}
    assert all(vendors.of_resource(name) for name in names)


@pytest.mark.parametrize("mode", ["1g.10gb", "1g.10gb+me"])
def test_a_modes_resource_name_is_the_vendors_own(mode: str) -> None:
    name = vendors.NVIDIA.partition_name(mode)
    assert vendors.NVIDIA.mode_in(name) == mode.replace("+", ".")


@pytest.mark.parametrize(
    ("vendor", "taint", "tolerated"),
    [
        ("nvidia", "nvidia.com/gpu", True),
        ("nvidia", "amd.com/gpu", False),
        ("amd", "amd.com/gpu", True),
        ("amd", "amd-dcm", False),
        ("amd", "amd-gpu-unhealthy", False),
        ("intel", "gpu.intel.com/xe", True),
        ("nvidia", "dedicated", False),
        ("nvidia", "node.kubernetes.io/unschedulable", False),
    ],
)
def test_only_taints_that_keep_pods_without_the_gpu_away_are_tolerated(
    vendor: vendors.VendorName, taint: str, tolerated: bool
) -> None:
    assert vendors.VENDORS[vendor].tolerates(taint) == tolerated
