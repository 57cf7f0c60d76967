"""Lookups are exact: whatever is asked, only a whole value finds a model."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from capability_db import partitions
from capability_db.catalogue import Catalogue
from capability_db.sku import Sku

BUILTIN = Catalogue.builtin()
LABELS = [(sku, label) for sku in BUILTIN for label in sku.match.product]
PCI_IDS = sorted({each for sku in BUILTIN for each in (*sku.match.pci, *sku.match.pci_shared)})
ENTRIES = [(sku, dict(part.split("=") for part in entry.split(","))) for sku in BUILTIN for entry in sku.match.cloud]


@st.composite
def parts_of_labels(draw: st.DrawFn) -> tuple[Sku, str]:
    """A model, and a proper substring of one of its product labels."""
    sku, label = draw(st.sampled_from(LABELS))
    start = draw(st.integers(0, len(label) - 1))
    stop = draw(st.integers(start + 1, len(label)))
    return sku, label[start:stop]


@given(parts_of_labels())
def test_a_part_of_a_label_finds_no_model_but_the_one_it_names_whole(part: tuple[Sku, str]) -> None:
    sku, text = part
    found = BUILTIN.by_product(sku.vendor, text)
    assert found is None or text in found.match.product


@given(st.sampled_from(LABELS), st.text(min_size=1, max_size=8), st.booleans())
def test_a_longer_label_does_not_find_the_model_of_the_shorter(each: tuple[Sku, str], more: str, front: bool) -> None:
    sku, label = each
    text = more + label if front else label + more
    found = BUILTIN.by_product(sku.vendor, text)
    assert found is None or text in found.match.product


@given(st.sampled_from(LABELS))
def test_every_label_finds_its_own_model(each: tuple[Sku, str]) -> None:
    sku, label = each
    assert BUILTIN.by_product(sku.vendor, label) is sku


@given(st.sampled_from(["nvidia", "amd", "intel"]), st.one_of(st.text(max_size=6), st.sampled_from(PCI_IDS)))
def test_a_pci_id_finds_only_models_that_carry_it(vendor: str, device_id: str) -> None:
    for sku in BUILTIN.by_pci(vendor, device_id):  # type: ignore[arg-type]
        assert sku.vendor == vendor
        assert device_id in sku.match.pci or device_id in sku.match.pci_shared


@given(
    st.sampled_from(ENTRIES),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.data(),
)
def test_a_cloud_entry_counts_whole_or_not_at_all(
    entry: tuple[Sku, Mapping[str, str]], noise: dict[str, str], data: st.DataObject
) -> None:
    sku, pairs = entry
    assert BUILTIN.by_cloud({**noise, **pairs}) is sku
    changed = data.draw(st.sampled_from(sorted(pairs)))
    assert BUILTIN.by_cloud({**noise, **pairs, changed: pairs[changed] + "x"}) is None


@given(st.text(max_size=20))
def test_a_suggestion_is_an_id_and_an_id_suggests_itself(text: str) -> None:
    near = BUILTIN.nearest(text)
    assert near is None or BUILTIN.get(near) is not None
    assert BUILTIN.get(text) is None or near == text


@given(st.text(max_size=12))
def test_only_whole_texts_are_amd_modes(text: str) -> None:
    mode = partitions.amd_mode(text)
    assert mode is None or f"{mode.compute}_{mode.memory}" == text.upper()
