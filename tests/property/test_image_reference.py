"""References survive being written and read again; any text is a reference or refused."""

from hypothesis import given
from hypothesis import strategies as st

from images import errors, reference
from images.reference import Reference

PARTS = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,2})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOSTS = st.sampled_from(["docker.io", "localhost", "localhost:5000", "127.0.0.1:5055", "[::1]:80", "nvcr.io", "r:1"])
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
DIGESTS = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
REFERENCES = st.builds(
    Reference, HOSTS, st.lists(PARTS, min_size=2, max_size=4).map("/".join), st.none() | TAGS, st.none() | DIGESTS
)
ALPHABET = st.sampled_from([*"abcZ09./:@-_[]+ \n\x00é", "sha256:", "a" * 64, "localhost", "docker.io/", "library/"])


@given(REFERENCES)
def test_what_is_written_is_read_back(written: Reference) -> None:
    parsed = reference.parse(str(written))
    assert parsed == written
    assert reference.parse(str(parsed)) == parsed


@given(st.text() | st.lists(ALPHABET, max_size=12).map("".join))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        parsed = reference.parse(text)
    except errors.BadReference as error:
        assert str(error)
        return
    assert str(parsed) == text
    assert reference.parse(str(parsed)) == parsed
    full = Reference(parsed.registry, parsed.repository, parsed.tag, parsed.digest)
    assert reference.parse(str(full)) == parsed


@given(REFERENCES, DIGESTS)
def test_a_pinned_image_names_the_same_repository(written: Reference, digest: str) -> None:
    pinned = reference.parse(written.pinned(digest))
    assert (pinned.name, pinned.tag, pinned.digest) == (written.name, None, digest)
