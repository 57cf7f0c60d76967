"""Estimates move the way that memory does, whatever the model and its sizes."""

from hypothesis import assume, given
from hypothesis import strategies as st

from capability_db import errors, models
from capability_db.sku import FORMATS, Format

BUILTIN = list(models.Profiles.builtin())

profiles = st.sampled_from(BUILTIN)
formats: st.SearchStrategy[Format] = st.sampled_from(FORMATS)
sizes = st.integers(1, 300)


def contexts(profile: models.ModelProfile) -> st.SearchStrategy[int | None]:
    return st.none() if profile.max_context is None else st.integers(1, profile.max_context)


def memory(profile: models.ModelProfile, precision: Format, batch: int, context: int | None, devices: int = 1) -> int:
    try:
        return models.workload(profile, precision, batch, context).on(devices).memory_bytes
    except errors.ModelError as error:
        assume(error.key != "batch")  # activations of the profile are unknown
        raise


@given(profiles, formats, sizes, sizes, st.data())
def test_more_sequences_never_need_less(
    profile: models.ModelProfile, precision: Format, one: int, other: int, data: st.DataObject
) -> None:
    context = data.draw(contexts(profile))
    few, many = sorted((one, other))
    assert memory(profile, precision, few, context) <= memory(profile, precision, many, context)


@given(profiles, formats, sizes, st.data())
def test_longer_sequences_never_need_less(
    profile: models.ModelProfile, precision: Format, batch: int, data: st.DataObject
) -> None:
    assume(profile.max_context is not None)
    short, long = sorted((data.draw(contexts(profile)) or 1, data.draw(contexts(profile)) or 1))
    assert memory(profile, precision, batch, short) <= memory(profile, precision, batch, long)


@given(profiles, formats, formats, sizes, st.data())
def test_wider_formats_never_need_less(
    profile: models.ModelProfile, one: Format, other: Format, batch: int, data: st.DataObject
) -> None:
    assume(not profile.weights_gib)
    context = data.draw(contexts(profile))
    narrow, wide = sorted((one, other), key=lambda each: models.BYTES[each])
    assert memory(profile, narrow, batch, context) <= memory(profile, wide, batch, context)


@given(profiles, formats, sizes, st.data())
def test_more_devices_never_need_more_each_and_never_less_than_their_part_of_the_weights(
    profile: models.ModelProfile, precision: Format, batch: int, data: st.DataObject
) -> None:
    context = data.draw(contexts(profile))
    needed = [memory(profile, precision, batch, context, count) for count in models.device_counts(profile, 64)]
    assert needed == sorted(needed, reverse=True)
    weights = models.weights_bytes(profile, precision)
    counts = models.device_counts(profile, 64)
    assert all(each >= weights / count for each, count in zip(needed, counts, strict=True))


@given(profiles, formats, sizes, st.floats(0, 2**45), st.data())
def test_the_fewest_devices_hold_the_model_and_fewer_do_not(
    profile: models.ModelProfile, precision: Format, batch: int, size: float, data: st.DataObject
) -> None:
    context = data.draw(contexts(profile))
    memory(profile, precision, batch, context)
    work = models.workload(profile, precision, batch, context)
    enough = work.fewest(size)
    for count in models.device_counts(profile, models.MOST_DEVICES):
        assert (work.on(count).memory_bytes <= size) == (enough is not None and count >= enough)
