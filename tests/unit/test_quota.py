"""What quota charges an injected pod for, and what a refusal says."""

from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from scheduler import kube, quota

Json = dict[str, Any]
NVIDIA, AMD, MIG = "nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb"


def limit(name: str = "gpus", *scopes: str, namespace: str = "team", **resources: tuple[int | str, int | str]) -> Json:
    """A quota; keywords nvidia, amd, mig are (used, hard)."""
    names = {"nvidia": NVIDIA, "amd": AMD, "mig": MIG}
    status: Json = {"hard": {}, "used": {}}
    for key, (used, hard) in resources.items():
        status["used"][f"requests.{names[key]}"] = str(used)
        status["hard"][f"requests.{names[key]}"] = str(hard)
    spec = {"hard": status["hard"], "scopes": list(scopes) or None}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec, "status": status}


def pod(*names: str, count: int = 1, **spec: Any) -> kube.Pod:
    limits = {name: str(count) for name in names}
    container = {"name": "main", "image": "app", "resources": {"limits": limits, "requests": limits}}
    return kube.to_pod({"metadata": {"name": "p"}, "spec": {"containers": [container], **spec}})


def asked(quotas: list[Json], given: kube.Pod, *injected: str) -> str | None:
    return quota.refusal([msgspec.convert(each, quota.ResourceQuota) for each in quotas], given, injected)


def test_each_name_must_fit_by_itself() -> None:
    both = pod(NVIDIA, AMD, count=2)
    assert asked([limit(nvidia=(2, 4), amd=(2, 4))], both, NVIDIA, AMD) is None
    assert asked([limit(nvidia=(3, 4), amd=(0, 4))], both, NVIDIA, AMD) == (
        "ResourceQuota team/gpus: requests.nvidia.com/gpu would be 5 of 4 (used 3, this pod 2); "
        "the pod is charged for each of amd.com/gpu, nvidia.com/gpu, whichever it is given; "
        "anygpu.io/vendor: amd leaves nvidia.com/gpu out, or have the quota raised"
    )


def test_where_every_vendor_is_over_only_the_quota_can_help() -> None:
    said = asked([limit(nvidia=(4, 4), amd=(1, 1))], pod(NVIDIA, AMD), NVIDIA, AMD)
    assert said is not None
    assert "requests.nvidia.com/gpu would be 5 of 4" in said
    assert "requests.amd.com/gpu would be 2 of 1" in said
    assert "anygpu.io/vendor" not in said
    assert said.endswith("have the quota raised, or wait until pods of the namespace are gone")


def test_another_name_of_the_same_vendor_is_no_way_out() -> None:
    said = asked([limit(nvidia=(4, 4), mig=(0, 9))], pod(NVIDIA, MIG), NVIDIA, MIG)
    assert said is not None
    assert "anygpu.io/vendor" not in said
    said = asked([limit(nvidia=(4, 4), mig=(9, 9))], pod(NVIDIA, MIG, AMD), NVIDIA, MIG, AMD)
    assert said is not None
    assert "anygpu.io/vendor: amd leaves nvidia.com/gpu, nvidia.com/mig-1g.10gb out" in said


def test_a_pod_with_one_name_is_told_of_one() -> None:
    assert asked([limit(nvidia=(0, 0))], pod(NVIDIA), NVIDIA) == (
        "ResourceQuota team/gpus: requests.nvidia.com/gpu would be 1 of 0 (used 0, this pod 1); "
        "have the quota raised, or wait until pods of the namespace are gone"
    )


def test_all_containers_count_and_every_quota_does() -> None:
    spec: Json = {"containers": [{"name": n, "resources": {"limits": {NVIDIA: "2"}}} for n in "ab"]}
    four = kube.to_pod({"metadata": {"name": "p"}, "spec": spec})
    assert asked([limit(nvidia=(0, 4))], four, NVIDIA) is None
    said = asked([limit("b", nvidia=(1, 4)), limit("a", nvidia=(0, 3)), limit("c", amd=(0, 0))], four, NVIDIA)
    assert said is not None
    assert said.index("team/a: ") < said.index("team/b: ")
    assert "team/c" not in said


def test_what_was_not_injected_is_the_api_servers_matter() -> None:
    assert asked([limit(nvidia=(4, 4))], pod(NVIDIA)) is None
    assert asked([limit(nvidia=(4, 4))], pod(NVIDIA), AMD) is None


@pytest.mark.parametrize(
    "status",
    [{}, {"hard": {f"requests.{NVIDIA}": "0"}}, {"used": {f"requests.{NVIDIA}": "9"}}, {"hard": {NVIDIA: "0"}}, None],
)
def test_a_quota_not_computed_yet_or_of_other_names_says_nothing(status: Json | None) -> None:
    found: Json = {"metadata": {"name": "q", "namespace": "team"}, "spec": {"hard": {f"requests.{NVIDIA}": "0"}}}
    assert asked([found | ({"status": status} if status is not None else {})], pod(NVIDIA), NVIDIA) is None


def test_quantities_of_any_form_are_numbers() -> None:
    assert asked([limit(nvidia=("999", "1k"))], pod(NVIDIA), NVIDIA) is None
    assert "would be 1001 of 1000" in (asked([limit(nvidia=("1k", "1e3"))], pod(NVIDIA), NVIDIA) or "")
    assert "of 1500m" in (asked([limit(nvidia=("1", "1500m"))], pod(NVIDIA), NVIDIA) or "")
    assert asked([limit(nvidia=("what", "0"))], pod(NVIDIA), NVIDIA) is None


CPU = {"containers": [{"name": "m", "resources": {"limits": {NVIDIA: "1"}, "requests": {"cpu": "1"}}}]}
IDLE = {"containers": [{"name": "m", "resources": {"limits": {NVIDIA: "1", "memory": "0"}, "requests": {"cpu": "0"}}}]}
OWN = {"resources": {"limits": {"memory": "1Gi"}}}
HUGE = {"resources": {"limits": {"hugepages-2Mi": "2Mi"}}}


@pytest.mark.parametrize(
    ("scope", "spec", "applies"),
    [
        ("Terminating", {}, False),
        ("Terminating", {"activeDeadlineSeconds": 0}, True),
        ("NotTerminating", {}, True),
        ("NotTerminating", {"activeDeadlineSeconds": 60}, False),
        ("BestEffort", {}, True),
        ("BestEffort", IDLE, True),
        ("BestEffort", CPU, False),
        ("BestEffort", OWN, False),
        ("BestEffort", CPU | HUGE, True),
        ("NotBestEffort", {}, False),
        ("NotBestEffort", CPU, True),
        ("PriorityClass", {}, False),
        ("PriorityClass", {"priorityClassName": "high"}, True),
        ("CrossNamespacePodAffinity", {}, False),
        ("OfNextYear", {}, False),
    ],
)
def test_a_quota_is_for_the_pods_of_its_scopes(scope: str, spec: Json, applies: bool) -> None:
    said = asked([limit("gpus", scope, nvidia=(1, 1))], pod(NVIDIA, **spec), NVIDIA)
    assert (said is not None) == applies
    selector = {"matchExpressions": [{"scopeName": scope, "operator": "Exists"}]}
    selected = limit(nvidia=(1, 1)) | {"spec": {"scopeSelector": selector}}
    assert asked([selected], pod(NVIDIA, **spec), NVIDIA) == said


@pytest.mark.parametrize(
    ("operator", "values", "name", "applies"),
    [
        ("In", ["high", "top"], "top", True),
        ("In", ["high"], "low", False),
        ("In", ["high"], None, False),
        ("NotIn", ["high"], "low", True),
        ("NotIn", ["high"], "high", False),
        ("NotIn", ["high"], None, True),
        ("Exists", None, "low", True),
        ("DoesNotExist", None, "low", False),
        ("DoesNotExist", None, None, True),
        ("SomethingElse", None, "low", False),
    ],
)
def test_priority_classes_are_selected_by_operators(
    operator: str, values: list[str] | None, name: str | None, applies: bool
) -> None:
    scope = {"scopeName": "PriorityClass", "operator": operator, "values": values}
    found = limit("gpus", "NotTerminating", nvidia=(1, 1))
    found["spec"]["scopeSelector"] = {"matchExpressions": [scope]}
    given = pod(NVIDIA, priorityClassName=name) if name else pod(NVIDIA)
    assert (asked([found], given, NVIDIA) is not None) == applies


NAMES = st.sampled_from(["a", "b"])


@given(st.lists(st.tuples(st.sampled_from(["apply", "remove", "replace"]), NAMES, NAMES, st.integers(0, 3))))
def test_the_store_holds_what_was_said_last(steps: list[tuple[str, str, str, int]]) -> None:
    store, model = quota.Quotas(), {}
    for what, namespace, name, hard in steps:
        found = msgspec.convert(limit(name, namespace=namespace, nvidia=(0, hard)), quota.ResourceQuota)
        if what == "replace":
            store.replace([found])
            model = {(namespace, name): found}
        elif what == "apply":
            store.apply(found)
            model[namespace, name] = found
        else:
            store.remove(found)
            model.pop((namespace, name), None)
        for each in "ab":
            assert sorted(store.of(each), key=lambda one: one.metadata.name) == [
                model[key] for key in sorted(model) if key[0] == each
            ]
    assert len(store._found) == len({namespace for namespace, _ in model})


AMOUNTS = st.sampled_from(["0", "1", "2", "4", "1k", "500m", "nonsense", ""])


@given(
    st.dictionaries(st.sampled_from([NVIDIA, AMD, MIG, "cpu"]), AMOUNTS),
    st.dictionaries(st.sampled_from([f"requests.{NVIDIA}", f"requests.{AMD}", "cpu"]), AMOUNTS),
    st.dictionaries(st.sampled_from([f"requests.{NVIDIA}", f"requests.{AMD}", "cpu"]), AMOUNTS),
)
def test_a_refusal_names_what_is_over_and_nothing_is_raised(limits: Json, used: Json, hard: Json) -> None:
    container = {"name": "main", "resources": {"limits": limits}}
    given = kube.to_pod({"metadata": {"name": "p"}, "spec": {"containers": [container]}})
    found = {"metadata": {"name": "q", "namespace": "team"}, "status": {"used": used, "hard": hard}}
    said = asked([found], given, NVIDIA, AMD, MIG)
    if said is not None:
        assert "team/q: requests." in said
        assert all(f"{name} would be" not in said for name in (NVIDIA, AMD) if f"requests.{name}" not in hard)
