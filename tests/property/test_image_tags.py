"""Whatever a tag is, reading it ends, and the words of the table stand for the same wherever they stand."""

from hypothesis import given
from hypothesis import strategies as st

from images import tags

TAGS = st.text(max_size=140) | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)
PIECES = ["v1", "nvidia", "amd", "cuda12.4", "rocm6.2", "gpu", "cu130", "mi30x", "intel", "cpu", "amd64", "dev", "12.4"]
JOINED = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).flatmap(
    lambda pieces: st.sampled_from(["-", "_"]).map(lambda joint: joint.join(pieces))
)
# Words that no row of the table reads, alone or beside another word.
NEUTRAL = st.sampled_from(["v1", "dev", "ubuntu22.04", "py3.12", "server", "vllm", "torch2.7", "20260601", "amd64"])


@given(TAGS | JOINED, TAGS | st.sampled_from(["rocm/vllm", "vllm/vllm-openai", "team/app", ""]))
def test_any_text_is_read(tag: str, repository: str) -> None:
    read = tags.decode(tag, repository)
    if read.vendor is None:
        assert (read.runtime, read.version, read.targets, read.basis) == (None, None, (), None)
    if read.version is not None:
        assert read.runtime is not None


@given(TAGS | JOINED)
def test_a_tag_that_speaks_of_two_vendors_is_undecided(tag: str) -> None:
    words = tags.Names("team/app").words(tag)
    vendors = {word.row.vendor for word in words if word.row.vendor}
    read = tags.decode(tag, "team/app").vendor
    assert read == (vendors.pop() if len(vendors) == 1 else None)


@given(st.lists(NEUTRAL, min_size=1, max_size=3), st.lists(NEUTRAL, max_size=3), st.sampled_from("-_"))
def test_a_vendor_word_is_read_the_same_among_other_words(before: list[str], after: list[str], joint: str) -> None:
    for word, vendor, version in [
        ("nvidia", "nvidia", None),
        ("cuda12.4", "nvidia", "12.4"),
        ("cu118", "nvidia", "11.8"),
        ("amd", "amd", None),
        ("rocm7.14", "amd", "7.14"),
        ("xpu", "intel", None),
    ]:
        read = tags.decode(joint.join([*before, word, *after]), "team/app")
        assert (read.vendor, read.version) == (vendor, version)


@given(st.integers(8, 19), st.integers(0, 99), st.integers(0, 999))
def test_dotted_versions_are_read_to_the_digit(major: int, minor: int, patch: int) -> None:
    assert tags.decode(f"v1-cuda{major}.{minor}", "a/b").version == f"{major}.{minor}"
    assert tags.decode(f"v1-cuda{major}.{minor}.{patch}-x", "a/b").version == f"{major}.{minor}.{patch}"
