"""MIG geometries and AMD partition modes."""

import itertools

import pytest
from pydantic import ValidationError

from capability_db import errors, partitions
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku

BUILTIN = Catalogue.builtin()
GEOMETRIES = {key: partitions.mig_geometry(key) for key in partitions.mig_keys()}
EVERY_PROFILE = [(key, profile) for key, geometry in GEOMETRIES.items() for profile in geometry.profiles]


def sku(sku_id: str) -> Sku:
    found = BUILTIN.get(sku_id)
    assert found is not None
    return found


def profile_of(key: str, name: str) -> partitions.Profile:
    found = partitions.mig_profile(key, name)
    assert found is not None
    return found


def test_an_a100_40gb_is_cut_as_nvidia_prints_it() -> None:
    found = {
        each.name: (each.size, each.starts, each.compute, each.max, each.memory_mib)
        for each in GEOMETRIES["a100-40gb"].profiles
    }
    assert found == {
        "1g.5gb": (1, (0, 1, 2, 3, 4, 5, 6), 1, 7, 4864),
        "1g.5gb+me": (1, (0, 1, 2, 3, 4, 5, 6), 1, 1, 4864),
        "1g.10gb": (2, (0, 2, 4, 6), 1, 4, 9856),
        "2g.10gb": (2, (0, 2, 4), 2, 3, 9856),
        "3g.20gb": (4, (0, 4), 3, 2, 19968),
        "4g.20gb": (4, (0,), 4, 1, 19968),
        "7g.40gb": (8, (0,), 7, 1, 40192),
    }


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("a30", ["1g.6gb", "1g.6gb+me", "2g.12gb", "2g.12gb+me", "4g.24gb"]),
        ("h100-80gb", ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]),
        ("h100-94gb", ["1g.12gb", "1g.12gb+me", "1g.24gb", "2g.24gb", "3g.47gb", "4g.47gb", "7g.94gb"]),
        ("h100-96gb", ["1g.12gb", "1g.12gb+me", "1g.24gb", "2g.24gb", "3g.48gb", "4g.48gb", "7g.96gb"]),
        ("h200", ["1g.18gb", "1g.18gb+me", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"]),
        ("b200", ["1g.23gb", "1g.23gb+me", "1g.45gb", "2g.45gb", "3g.90gb", "4g.90gb", "7g.180gb"]),
        ("a100-80gb", ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]),
        ("gh200-144gb", ["1g.18gb", "1g.18gb+me", "1g.36gb", "2g.36gb", "3g.72gb", "4g.72gb", "7g.144gb"]),
        ("b300", ["1g.34gb", "1g.34gb+me", "1g.67gb", "2g.67gb", "3g.135gb", "4g.135gb", "7g.269gb"]),
        ("gb300", ["1g.35gb", "1g.35gb+me", "1g.70gb", "2g.70gb", "3g.139gb", "4g.139gb", "7g.278gb"]),
        (
            "gb200",  # a driver offers 3g.93gb, 4g.93gb and 7g.186gb, or the others
            [
                *("1g.23gb", "1g.23gb+me", "1g.47gb", "2g.47gb"),
                *("3g.93gb", "3g.95gb", "4g.93gb", "4g.95gb", "7g.186gb", "7g.189gb"),
            ],
        ),
    ],
)
def test_profile_names(key: str, names: list[str]) -> None:
    assert [each.name for each in GEOMETRIES[key].profiles] == names


@pytest.mark.parametrize("key", [key for key, each in GEOMETRIES.items() if each.memory_slices == 8])
def test_gpus_of_eight_memory_slices_are_all_cut_alike(key: str) -> None:
    places = {(each.size, each.starts, each.compute, each.max, each.media) for each in GEOMETRIES[key].profiles}
    assert places == {
        (1, (0, 1, 2, 3, 4, 5, 6), 1, 7, False),
        (1, (0, 1, 2, 3, 4, 5, 6), 1, 1, True),
        (2, (0, 2, 4, 6), 1, 4, False),
        (2, (0, 2, 4), 2, 3, False),
        (4, (0, 4), 3, 2, False),
        (4, (0,), 4, 1, False),
        (8, (0,), 7, 1, False),
    }


def test_every_capable_model_has_the_geometry_of_its_memory() -> None:
    assert {each.id: each.mig for each in BUILTIN if each.mig} == {
        "a30": "a30",
        "a100-pcie-40gb": "a100-40gb",
        "a100-sxm4-40gb": "a100-40gb",
        "a100-pcie-80gb": "a100-80gb",
        "a100-sxm4-80gb": "a100-80gb",
        "a800-sxm4-80gb": "a100-80gb",
        "a800-pcie-80gb": "a100-80gb",
        "h20": "h100-96gb",
        "h100-pcie": "h100-80gb",
        "h100-sxm": "h100-80gb",
        "h100-nvl": "h100-94gb",
        "h200-sxm": "h200",
        "h200-nvl": "h200",
        "gh200-480gb": "h100-96gb",
        "gh200-144g": "gh200-144gb",
        "b200": "b200",
        "b300": "b300",
        "gb200": "gb200",
        "gb300": "gb300",
        "rtx-pro-6000-blackwell-server": "rtx-pro-6000",
        "rtx-pro-6000-blackwell-ws": "rtx-pro-6000",
    }


def test_an_rtx_pro_6000_has_media_and_graphics_variants() -> None:
    profiles = {each.name: each for each in GEOMETRIES["rtx-pro-6000"].profiles}
    assert len(profiles) == 11
    assert [name for name, each in profiles.items() if each.media] == ["1g.24gb+me", "1g.24gb+me.all", "2g.48gb+me.all"]
    assert [name for name, each in profiles.items() if each.graphics] == ["1g.24gb+gfx", "2g.48gb+gfx", "4g.96gb+gfx"]
    assert profiles["1g.24gb-me"].max == 4


@pytest.mark.parametrize(("key", "profile"), EVERY_PROFILE, ids=lambda each: getattr(each, "name", each))
def test_placements_lie_on_the_gpu_and_as_many_instances_fit_as_stated(key: str, profile: partitions.Profile) -> None:
    geometry = GEOMETRIES[key]
    assert all(0 <= start <= geometry.memory_slices - profile.size for start in profile.starts)
    assert profile.max <= len(profile.starts)
    apart = all(later - earlier >= profile.size for earlier, later in itertools.pairwise(profile.starts))
    assert apart, "placements of one profile do not overlap"
    assert profile.max * profile.compute <= geometry.compute_slices


@pytest.mark.parametrize("key", GEOMETRIES)
def test_the_largest_profile_is_the_whole_gpu(key: str) -> None:
    geometry = GEOMETRIES[key]
    largest = max(geometry.profiles, key=lambda each: each.size)
    assert partitions.mig_share(geometry, largest) == partitions.Share(memory=1, compute=1)


@pytest.mark.parametrize("nvidia", [each for each in BUILTIN if each.mig], ids=lambda each: each.id)
def test_an_instance_reports_no_more_than_its_part_of_the_card(nvidia: Sku) -> None:
    assert nvidia.mig is not None
    geometry = partitions.mig_geometry(nvidia.mig)
    for profile in geometry.profiles:
        part = nvidia.memory_gib * 1024 * profile.size / geometry.memory_slices
        assert 0.85 * part < partitions.mig_memory_mib(nvidia.memory_mib, geometry, profile) <= 1.001 * part


def test_a_share_is_of_slices() -> None:
    geometry = GEOMETRIES["a100-80gb"]
    assert partitions.mig_share(geometry, profile_of("a100-80gb", "3g.40gb")) == partitions.Share(0.5, 3 / 7)
    assert partitions.mig_share(geometry, profile_of("a100-80gb", "1g.20gb")) == partitions.Share(0.25, 1 / 7)


def test_memory_is_the_seen_figure_else_the_part_rounded_down() -> None:
    seen = profile_of("a100-80gb", "1g.10gb")
    assert partitions.mig_memory_mib(81920, GEOMETRIES["a100-80gb"], seen) == 9856
    unseen = profile_of("b200", "1g.23gb")
    assert partitions.mig_memory_mib(183359, GEOMETRIES["b200"], unseen) == 22919


def test_a_profile_is_found_by_its_name_and_by_its_form_in_resource_names() -> None:
    assert profile_of("a100-80gb", "1g.10gb+me") is profile_of("a100-80gb", "1g.10gb.me")
    assert profile_of("rtx-pro-6000", "1g.24gb.me.all").name == "1g.24gb+me.all"
    assert profile_of("rtx-pro-6000", "1g.24gb-me").resource_form == "1g.24gb-me"


@pytest.mark.parametrize("name", ["1g.5gb", "1G.10GB", "10gb", "", "1g.10gb+ME", "1g.10gb.", "all"])
def test_names_of_other_gpus_and_parts_of_names_find_no_profile(name: str) -> None:
    assert partitions.mig_profile("a100-80gb", name) is None


def test_all_profiles_are_named_with_a_plus() -> None:
    names = partitions.all_mig_profiles()
    assert {"1g.5gb", "1g.10gb+me", "3g.40gb", "7g.141gb", "2g.48gb+me.all", "1g.24gb-me"} <= names
    assert "1g.10gb.me" not in names


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(errors.CatalogueError, match=r"'a100'; known are a30, a100-40gb"):
        partitions.mig_geometry("a100")


@pytest.mark.parametrize(
    "profile",
    [
        {"name": "1g.5gb", "size": 2, "starts": [3], "compute": 1, "max": 1},
        {"name": "1g.5gb", "size": 1, "starts": [-1], "compute": 1, "max": 1},
        {"name": "1g.5gb", "size": 1, "starts": [0], "compute": 1, "max": 2},
        {"name": "1g.5gb", "size": 1, "starts": [0], "compute": 5, "max": 1},
        {"name": "5gb", "size": 1, "starts": [0], "compute": 1, "max": 1},
    ],
)
def test_a_profile_that_does_not_fit_the_gpu_is_no_geometry(profile: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        partitions.Geometry.model_validate({"memory_slices": 4, "compute_slices": 4, "profiles": [profile]})


# --- AMD --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["cpx_nps4", "CPX_NPS4", "Cpx_nps4"])
def test_an_amd_mode_is_read_in_any_case(text: str) -> None:
    assert partitions.amd_mode(text) == partitions.AmdMode(compute="CPX", memory="NPS4")


@pytest.mark.parametrize(
    "text", ["", "cpx", "nps4", "cpx-nps4", "cpx_nps3", "cpx_nps4 ", "xcpx_nps4", "gpu", "cpx_nps٤"]
)
def test_other_texts_are_no_amd_mode(text: str) -> None:
    assert partitions.amd_mode(text) is None


@pytest.mark.parametrize(
    ("sku_id", "compute", "parts"),
    [
        ("mi300x", "SPX", 1),
        ("mi300x", "DPX", 2),
        ("mi300x", "QPX", 4),
        ("mi300x", "CPX", 8),
        ("mi300x", "cpx", 8),
        ("mi300x", "TPX", None),
        ("mi325x", "CPX", 8),
        ("mi355x", "CPX", 8),
        ("mi300a", "TPX", 3),
        ("mi300a", "CPX", 6),
        ("mi300a", "DPX", None),
        ("mi210", "CPX", None),
        ("mi308x", "CPX", None),
        ("h100-sxm", "SPX", None),
    ],
)
def test_how_many_devices_a_mode_makes_is_the_models(sku_id: str, compute: str, parts: int | None) -> None:
    assert partitions.amd_parts(sku(sku_id), compute) == parts


def test_memory_modes_of_a_compute_mode() -> None:
    assert partitions.amd_memory_modes(sku("mi300x"), "CPX") == ("NPS1", "NPS4")
    assert partitions.amd_memory_modes(sku("mi210"), "CPX") == ()


@pytest.mark.parametrize("amd", [each for each in BUILTIN if each.compute_modes], ids=lambda each: each.id)
def test_the_partition_table_and_the_skus_agree(amd: Sku) -> None:
    assert all(partitions.amd_parts(amd, compute) for compute in amd.compute_modes)
    paired = {mode for compute in amd.compute_modes for mode in partitions.amd_memory_modes(amd, compute)}
    assert paired == {*amd.memory_modes}


# --- What still fits on a GPU ---------------------------------------------------------------------------------------


def placements(key: str, *without: str) -> list[partitions.Placed]:
    """Every placement of every profile without media extensions."""
    return [
        (profile, start)
        for profile in GEOMETRIES[key].profiles
        if not profile.media and profile.name not in without
        for start in profile.starts
    ]


def layouts(key: str, there: list[partitions.Placed]) -> set[frozenset[tuple[str, int]]]:
    """Every set of the placements that the GPU can hold, one instance after the other."""
    found: set[frozenset[tuple[str, int]]] = set()

    def extend(occupied: list[partitions.Placed]) -> None:
        layout = frozenset((profile.name, start) for profile, start in occupied)
        if layout in found:
            return
        found.add(layout)
        free = partitions.free_starts(GEOMETRIES[key], occupied)
        for profile, start in there:
            if start in free[profile.name]:
                extend([*occupied, (profile, start)])

    extend([])
    return found


def maximal(key: str, there: list[partitions.Placed]) -> list[frozenset[tuple[str, int]]]:
    every = layouts(key, there)
    names = [(profile.name, start) for profile, start in there]
    return [layout for layout in every if not any(layout | {each} in every for each in names if each not in layout)]


def mixes(found: list[frozenset[tuple[str, int]]]) -> set[tuple[str, ...]]:
    """The layouts as multisets of profiles of which none is part of another."""
    every = {tuple(sorted(name for name, _ in layout)) for layout in found}

    def within(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
        return one != other and all(one.count(name) <= other.count(name) for name in one)

    return {mix for mix in every if not any(within(mix, other) for other in every)}


def test_an_a100_80gb_has_as_many_layouts_as_were_enumerated_elsewhere() -> None:
    there = placements("a100-80gb")
    assert len(there) == 18
    found = maximal("a100-80gb", there)
    assert (len(found), len(mixes(found))) == (78, 28)
    plain = maximal("a100-80gb", placements("a100-80gb", "1g.20gb"))
    assert (len(plain), len(mixes(plain))) == (19, 12)
    assert len(mixes(maximal("a30", placements("a30")))) == 4


@pytest.mark.parametrize("key", [key for key, each in GEOMETRIES.items() if each.memory_slices == 8])
def test_no_layout_has_more_compute_than_the_gpu(key: str) -> None:
    every = layouts(key, placements(key))
    profiles = {each.name: each for each in GEOMETRIES[key].profiles}
    units = {
        frozenset(unit for name, start in layout for unit in range(start, start + profiles[name].size))
        for layout in every
    }
    assert len(units) == 192  # 256, but unit 7 is only ever taken together with unit 6
    assert max(sum(profiles[name].compute for name, _ in layout) for layout in every) == 7


def test_what_fits_on_an_empty_gpu_is_what_the_vendor_states() -> None:
    for geometry in GEOMETRIES.values():
        assert partitions.still_fit(geometry, []) == {each.name: each.max for each in geometry.profiles}


def test_what_still_fits_depends_on_where_instances_lie() -> None:
    geometry, three = GEOMETRIES["a100-80gb"], profile_of("a100-80gb", "3g.40gb")
    one, media = profile_of("a100-80gb", "1g.10gb"), profile_of("a100-80gb", "1g.10gb+me")
    assert partitions.still_fit(geometry, [(three, 4)]) == {
        "1g.10gb": 4,
        "1g.10gb+me": 1,
        "1g.20gb": 2,
        "2g.20gb": 2,
        "3g.40gb": 1,
        "4g.40gb": 1,
        "7g.80gb": 0,
    }
    assert partitions.still_fit(geometry, [(three, 0)]) == {
        "1g.10gb": 3,
        "1g.10gb+me": 1,
        "1g.20gb": 2,
        "2g.20gb": 1,
        "3g.40gb": 1,
        "4g.40gb": 0,
        "7g.80gb": 0,
    }
    assert partitions.free_starts(geometry, [(one, 1)])["2g.20gb"] == (2, 4)
    assert partitions.free_starts(geometry, [(media, 6)])["1g.10gb+me"] == ()
    assert partitions.still_fit(geometry, [(one, start) for start in range(7)])["1g.20gb"] == 0


@pytest.mark.parametrize("key", ["a30", "rtx-pro-6000"])
def test_one_instance_of_a_gpu_has_the_media_extensions(key: str) -> None:
    geometry = GEOMETRIES[key]
    media = [each for each in geometry.profiles if each.media]
    for first in media:
        left = partitions.still_fit(geometry, [(first, first.starts[0])])
        assert [left[each.name] for each in media] == [0] * len(media)


def test_no_instance_is_counted_where_another_lies_or_beyond_the_maximum() -> None:
    """Whatever lies there, so many more of a profile can really be placed, and not one more."""
    for key in ("a30", "a100-40gb", "rtx-pro-6000"):
        geometry = GEOMETRIES[key]
        there = [(profile, start) for profile in geometry.profiles[:4] for start in profile.starts]
        profiles = {each.name: each for each in geometry.profiles}
        for layout in layouts(key, there):
            occupied = [(profiles[name], start) for name, start in layout]
            free, count = partitions.free_starts(geometry, occupied), partitions.still_fit(geometry, occupied)
            for name, starts in free.items():
                size, room = profiles[name].size, 0
                for chosen in itertools.chain.from_iterable(
                    itertools.combinations(starts, many) for many in range(len(starts) + 1)
                ):
                    if all(b - a >= size for a, b in itertools.pairwise(sorted(chosen))):
                        room = max(room, len(chosen))
                held = sum(each == name for each, _ in layout)
                assert count[name] == min(room, profiles[name].max - held)
