"""From a logical image to digests: what is asked, what is kept, and what is said when there is nothing."""

import asyncio
import hashlib
import time
import traceback
from collections.abc import Callable, Iterable

import pytest

from images import errors, reference, resolve

DIGEST = "sha256:" + "0" * 64


def digest_of(tag: str) -> str:
    return f"sha256:{hashlib.sha256(tag.encode()).hexdigest()}"


class FakeRegistry:
    """Tags by repository; counts what is asked."""

    def __init__(self, **repositories: Iterable[str]) -> None:
        self.repositories = {name: set(tags) for name, tags in repositories.items()}
        self.gone: set[str] = set()
        self.failing: dict[str, errors.RegistryError] = {}
        self.asked: list[str] = []
        self.pause = 0.0
        self.pending, self.most_pending = 0, 0

    async def tags(self, image: reference.Reference) -> tuple[str, ...]:
        return tuple(sorted(await self._answer("tags", image)))

    async def digest(self, image: reference.Reference) -> str:
        there = await self._answer(str(image.tag), image)
        if image.tag not in there or image.tag in self.gone:
            raise errors.NotFound(f"registry {image.registry}: {image}: not found")
        return digest_of(str(image.tag))

    async def _answer(self, what: str, image: reference.Reference) -> set[str]:
        self.asked.append(what)
        self.pending += 1
        self.most_pending = max(self.most_pending, self.pending)
        await asyncio.sleep(self.pause)
        self.pending -= 1
        if what in self.failing:
            raise self.failing[what]
        name = image.repository.rpartition("/")[2]
        if name not in self.repositories:
            raise errors.NotFound(f"registry {image.registry}: {image.repository}: not found")
        return self.repositories[name]


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def variants(registry: FakeRegistry, image: str) -> resolve.Resolved:
    return asyncio.run(resolve.Resolver(registry).variants(image))


def images(resolved: resolve.Resolved) -> dict[str, str]:
    return {vendor: pinned.image for vendor, pinned in resolved.by_vendor.items()}


def test_each_vendor_gets_its_variant_by_digest() -> None:
    registry = FakeRegistry(app=["v1-nvidia", "v1-rocm6.2", "v2-amd"])
    resolved = variants(registry, "repo/app:v1")
    assert images(resolved) == {
        "nvidia": f"repo/app@{digest_of('v1-nvidia')}",
        "amd": f"repo/app@{digest_of('v1-rocm6.2')}",
    }
    assert resolved.requested == "repo/app:v1"
    assert not resolved.pinned_by_user
    amd = resolved.by_vendor["amd"]
    assert (amd.tag, amd.variant.version, amd.why) == (
        "v1-rocm6.2",
        "6.2",
        "v1-rocm6.2 is AMD's (ROCm 6.2), the only one for v1",
    )
    assert sorted(registry.asked) == ["tags", "v1-nvidia", "v1-rocm6.2"]


def options(resolved: resolve.Resolved) -> dict[str, list[str]]:
    return {vendor: [pinned.image for pinned in each] for vendor, each in resolved.options.items()}


def test_variants_for_some_devices_each_come_all_by_digest_and_at_once() -> None:
    registry = FakeRegistry(app=["v1-rocm6.2-gfx942", "v1-rocm6.2-gfx90a", "v1-nvidia", "v1-sm90"])
    resolved = variants(registry, "repo/app:v1")
    assert registry.most_pending == 3
    assert options(resolved) == {
        "nvidia": [f"repo/app@{digest_of('v1-nvidia')}"],
        "amd": [f"repo/app@{digest_of(tag)}" for tag in ("v1-rocm6.2-gfx90a", "v1-rocm6.2-gfx942")],
    }
    assert images(resolved) == {vendor: each[0] for vendor, each in options(resolved).items()}
    assert next(each.tag for each in resolved.options["amd"] if each.runs_on("gfx942")) == "v1-rocm6.2-gfx942"
    assert not any(each.runs_on("gfx950") for each in resolved.options["amd"])


def test_one_of_several_that_vanished_leaves_the_others() -> None:
    registry = FakeRegistry(app=["v1-sm90", "v1-sm86", "v1-cuda12.4-sm86", "v1-sm80"])
    registry.gone = {"v1-sm86", "v1-sm80"}
    left = [f"repo/app@{digest_of(tag)}" for tag in ("v1-sm90", "v1-cuda12.4-sm86")]
    assert options(variants(registry, "repo/app:v1")) == {"nvidia": left}


def test_one_of_several_whose_digest_cannot_be_had_is_never_just_left_out() -> None:
    registry = FakeRegistry(app=["v1-sm90", "v1-sm86"])
    registry.failing["v1-sm86"] = errors.RegistryUnreachable("registry docker.io: status 503")
    with pytest.raises(errors.RegistryUnreachable, match="503"):
        variants(registry, "repo/app:v1")


@pytest.mark.parametrize("image", ["repo/app:v1-sm86", f"repo/app@{DIGEST}", f"repo/app:v1-sm86@{DIGEST}"])
def test_what_the_user_names_or_pins_is_the_only_option(image: str) -> None:
    resolved = variants(FakeRegistry(app=["v1-sm86", "v1-sm90"]), image)
    assert resolved.options == {vendor: (pinned,) for vendor, pinned in resolved.by_vendor.items()}


def test_without_options_those_of_each_vendor_are_the_only_ones() -> None:
    found = variants(FakeRegistry(app=["v1-sm86", "v1-sm90"]), "repo/app:v1").by_vendor
    assert resolve.Resolved("repo/app:v1", found, pinned_by_user=False).options == {"nvidia": (found["nvidia"],)}


def test_an_image_that_names_its_vendor_needs_no_list_of_tags() -> None:
    registry = FakeRegistry(app=["v1-nvidia", "v1-amd"], vllm=["latest"])
    assert images(variants(registry, "repo/app:v1-amd")) == {"amd": f"repo/app@{digest_of('v1-amd')}"}
    assert images(variants(registry, "rocm/vllm")) == {"amd": f"rocm/vllm@{digest_of('latest')}"}
    assert registry.asked == ["v1-amd", "latest"]


def test_a_repository_that_names_a_vendor_may_still_hold_several() -> None:
    registry = FakeRegistry(app=["v1-nvidia", "v1-amd"])
    assert sorted(variants(registry, "reg.corp/nvidia/app:v1").by_vendor) == ["amd", "nvidia"]


@pytest.mark.parametrize(
    ("image", "vendors"),
    [
        (f"repo/app@{DIGEST}", ["amd", "intel", "nvidia"]),
        (f"repo/app:v1@{DIGEST}", ["amd", "intel", "nvidia"]),
        (f"repo/app:v1-rocm6.2@{DIGEST}", ["amd"]),
        (f"rocm/vllm@{DIGEST}", ["amd"]),
        (f"ollama/ollama:0.11.11@{DIGEST}", ["nvidia"]),
    ],
)
def test_an_image_that_the_user_pinned_stays_as_it_is(image: str, vendors: list[str]) -> None:
    registry = FakeRegistry()
    resolved = variants(registry, image)
    assert resolved.pinned_by_user
    assert sorted(resolved.by_vendor) == vendors
    assert {pinned.image for pinned in resolved.by_vendor.values()} == {image}
    assert registry.asked == []


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("repo/app:v3", "push repo/app:v3-nvidia or repo/app:v3-amd"),
        ("repo/app", "push repo/app:nvidia or repo/app:amd"),
        ("repo/app:v3", "tags there: v1-ci0, v1-ci1, v1-ci10, v1-ci11, v1-ci2, v1-ci3, v1-ci4, v1-ci5 and 7 more;"),
        ("repo/app:v2", "tags there: v2-cpu, v2-x, v1-ci0,"),
        ("repo/app:v2-cpu", "its own name says cpu"),
        ("repo/app:v9-nvidia", "image repo/app:v9-nvidia does not exist"),
        ("repo/none:v1", "image repo/none:v1 does not exist"),
        ("repo/empty:v1", "tags there: none;"),
        (f"repo/app:v1-cpu@{DIGEST}", "is for cpu, not for a GPU"),
    ],
)
def test_without_a_variant_it_says_what_is_there_and_what_would_help(image: str, says: str) -> None:
    signature = f"sha256-{'0' * 64}.sig"
    tags = [*(f"v1-ci{index}" for index in range(12)), "v2-x", "v2-cpu", "zz", signature]
    with pytest.raises(errors.NoVariant) as caught:
        variants(FakeRegistry(app=tags, empty=[]), image)
    assert says in str(caught.value)
    assert signature not in str(caught.value)


def test_a_bad_reference_is_refused_before_anything_is_asked() -> None:
    registry = FakeRegistry()
    with pytest.raises(errors.BadReference):
        variants(registry, "Repo/App")
    assert registry.asked == []


def test_a_tag_that_vanished_gives_way_to_the_next_best() -> None:
    registry = FakeRegistry(app=["v1-cuda12.4", "v1-cuda12.8", "v1-amd"])
    registry.gone = {"v1-cuda12.8", "v1-amd"}
    assert images(variants(registry, "repo/app:v1")) == {"nvidia": f"repo/app@{digest_of('v1-cuda12.4')}"}


def test_a_vendor_whose_digest_cannot_be_had_is_never_just_left_out() -> None:
    registry = FakeRegistry(app=["v1-nvidia", "v1-amd"])
    registry.failing["v1-amd"] = errors.RegistryUnreachable("registry docker.io: status 503")
    with pytest.raises(errors.RegistryUnreachable, match="503"):
        variants(registry, "repo/app:v1")


def counted(work: Callable[[resolve.Resolver, FakeRegistry, Clock], object]) -> None:
    """Run a coroutine function with a resolver whose clock the test moves."""
    registry, clock = FakeRegistry(app=["v1-nvidia"]), Clock()

    async def run() -> None:
        await work(resolve.Resolver(registry, now=clock), registry, clock)  # type: ignore[misc]

    asyncio.run(run())


def test_an_answer_is_kept_for_a_minute() -> None:
    async def work(resolver: resolve.Resolver, registry: FakeRegistry, clock: Clock) -> None:
        first = await resolver.variants("repo/app:v1")
        clock.time += 59
        assert await resolver.variants("repo/app:v1") is first
        assert len(registry.asked) == 2
        clock.time += 2
        registry.repositories["app"].add("v1-amd")
        assert sorted((await resolver.variants("repo/app:v1")).by_vendor) == ["amd", "nvidia"]

    counted(work)


def test_a_failure_is_kept_for_ten_seconds() -> None:
    async def work(resolver: resolve.Resolver, registry: FakeRegistry, clock: Clock) -> None:
        registry.failing["tags"] = errors.RegistryUnreachable("registry docker.io: status 503")
        depths = []
        for _ in range(3):
            with pytest.raises(errors.RegistryUnreachable, match="503") as caught:
                await resolver.variants("repo/app:v1")
            depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert depths[1] == depths[2]
        assert registry.asked == ["tags"]
        registry.failing.clear()
        clock.time += 11
        assert list((await resolver.variants("repo/app:v1")).by_vendor) == ["nvidia"]

    counted(work)


def test_fifty_at_once_ask_once() -> None:
    async def work(resolver: resolve.Resolver, registry: FakeRegistry, clock: Clock) -> None:
        registry.pause = 0.01
        answers = await asyncio.gather(*(resolver.variants("repo/app:v1") for _ in range(50)))
        assert len({id(answer) for answer in answers}) == 1
        assert registry.asked == ["tags", "v1-nvidia"]

    counted(work)


def test_one_who_gives_up_does_not_take_the_answer_from_the_others() -> None:
    async def work(resolver: resolve.Resolver, registry: FakeRegistry, clock: Clock) -> None:
        registry.pause = 0.02
        first = asyncio.create_task(resolver.variants("repo/app:v1"))
        second = asyncio.create_task(resolver.variants("repo/app:v1"))
        await asyncio.sleep(0.01)
        first.cancel()
        assert list((await second).by_vendor) == ["nvidia"]
        assert first.cancelled()
        assert registry.asked == ["tags", "v1-nvidia"]

    counted(work)


def test_no_more_is_kept_than_there_is_room_for() -> None:
    registry = FakeRegistry(app=["v1-nvidia", "v2-nvidia", "v3-nvidia"])

    async def run() -> None:
        resolver = resolve.Resolver(registry, capacity=2)
        for tag in ("v1", "v2", "v3", "v3", "v2", "v1"):
            await resolver.variants(f"repo/app:{tag}")

    asyncio.run(run())
    assert [asked for asked in registry.asked if asked != "tags"] == [
        "v1-nvidia",
        "v2-nvidia",
        "v3-nvidia",
        "v1-nvidia",
    ]


def test_an_answer_that_is_kept_costs_microseconds() -> None:
    async def work(resolver: resolve.Resolver, registry: FakeRegistry, clock: Clock) -> None:
        await resolver.variants("repo/app:v1")
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(200):
                await resolver.variants("repo/app:v1")
            best = min(best, (time.perf_counter() - start) / 200)
        assert best < 20e-6

    counted(work)


def test_an_image_for_some_devices_says_on_which_it_runs() -> None:
    amd = variants(FakeRegistry(app=["v1-rocm7.2-mi30x"]), "repo/app:v1").by_vendor["amd"]
    assert amd.runs_on("gfx942")
    assert not amd.runs_on("gfx950")
