"""Choosing: the order of the list says nothing, and only vendor words may be added."""

from hypothesis import given
from hypothesis import strategies as st

from images import choose
from images import tags as names

WANTED = st.sampled_from([None, "latest", "v1", "v1-dev", "v1.2", "12.4", "server"])
VENDORS = [
    "nvidia",
    "amd",
    "cuda",
    "cuda12.4",
    "cuda12.10",
    "rocm6.2",
    "rocm711",
    "mi30x",
    "sm86",
    "sm90",
    "gfx90a",
    "xpu",
    "intel",
    "tensorrt",
]
PIECES = st.sampled_from([*VENDORS, "v1", "v1.2", "dev", "latest", "gpu", "cpu", "amd64", "12.4", "server"])
TAGS = st.lists(PIECES, min_size=1, max_size=4).flatmap(
    lambda pieces: st.sampled_from("-_.").map(lambda j: j.join(pieces))
)
WORDS = st.sampled_from(["nvidia", "cuda12.4", "cu130", "amd", "rocm6.2", "rocm720-mi30x", "intel-xpu", "gpu-nvidia"])


@given(st.lists(TAGS, max_size=12), WANTED, st.randoms())
def test_the_order_of_the_list_says_nothing(tags: list[str], wanted: str | None, random) -> None:  # type: ignore[no-untyped-def]
    shuffled = random.sample(tags, len(tags))
    assert choose.candidates(tags, wanted, "repo/app") == choose.candidates(shuffled, wanted, "repo/app")


@given(st.lists(TAGS, max_size=12), WANTED)
def test_what_is_chosen_is_there_and_of_its_vendor(tags: list[str], wanted: str | None) -> None:
    for vendor, choices in choose.candidates(tags, wanted, "repo/app").items():
        for choice in choices:
            assert choice.tag in tags
            assert names.decode(choice.tag, "repo/app").vendor == vendor
            assert choice.why


@given(st.lists(TAGS, max_size=12), WANTED)
def test_a_vendor_has_one_choice_for_any_device_or_one_for_each_set_of_targets(
    tags: list[str], wanted: str | None
) -> None:
    for choices in choose.candidates(tags, wanted, "repo/app").values():
        targets = [frozenset(choice.targets) for choice in choices]
        assert targets == [frozenset()] or (all(targets) and len(set(targets)) == len(targets) <= choose.MAX_OPTIONS)


@given(
    st.lists(st.sampled_from(["nvidia", "latest-nvidia", "amd", "latest-amd", "xpu", "latest-xpu", "latest-sm90"])),
    st.sampled_from([None, "latest"]),
)
def test_vendors_get_one_form_of_latest_wherever_each_has_it(tags: list[str], wanted: str | None) -> None:
    found = choose.candidates(tags, wanted, "repo/app")
    forms = {vendor: {choice.tag.startswith("latest-") for choice in choices} for vendor, choices in found.items()}
    there = {vendor: set[bool]() for vendor in found}
    for tag in tags:
        there[next(vendor for vendor in found if names.decode(tag).vendor == vendor)].add(tag.startswith("latest-"))
    preferred = wanted is not None
    common = [form for form in (preferred, not preferred) if all(form in has for has in there.values())]
    for vendor, has in there.items():
        best = common[0] if common else preferred if preferred in has else not preferred
        assert forms[vendor] == {best}


@given(WANTED.filter(bool), WORDS, st.booleans())
def test_the_logical_tag_with_a_vendor_word_is_found(wanted: str, word: str, prefix: bool) -> None:
    tag = f"{word}-{wanted}" if prefix else f"{wanted}-{word}"
    choices = choose.candidates([tag], wanted, "repo/app").values()
    assert [choice.tag for each in choices for choice in each] == [tag]


@given(WANTED.filter(bool), WORDS, st.sampled_from(["x", "v2", "ubuntu22.04", "amd64", "0"]))
def test_any_other_word_makes_it_another_image(wanted: str, word: str, other: str) -> None:
    tags = [
        f"{wanted}-{other}-{word}",
        f"{other}-{wanted}-{word}",
        f"{wanted}-{word}-{other}",
        f"{wanted}{other}-{word}",
    ]
    assert choose.candidates(tags, wanted, "repo/app") == {}
