"""What admins registered -> the capability DB and the policies in force, with a verdict for each object: pure.

An object counts once it is valid and agrees with all that is in force. One that becomes invalid stays in force as it
was last good; its status keeps that version too, so that a service that starts later knows it. Of two objects that
claim the same label or PCI id the one in force keeps it, and among new ones the older.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal

import msgspec
import pydantic

from capability_db import errors, models, problems, resources
from capability_db.catalogue import Catalogue
from capability_db.sku import Provenance, Sku

KINDS: Final = ("GPUSKU", "ModelProfile", "PlacementPolicy")
"""In the order in which they are judged: policies name SKUs."""

READY: Final = "Ready"

Reason = Literal["Accepted", "Invalid", "Clash"]
Value = Sku | models.ModelProfile | resources.PlacementPolicySpec


class _Base(msgspec.Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """A piece of an object; the API's other fields are left out."""


class Metadata(_Base, frozen=True):
    """What of an object's metadata matters."""

    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    generation: int = 0
    resource_version: str | None = None
    creation_timestamp: str | None = None


class Condition(_Base, frozen=True):
    """A condition of the object's status."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""
    observed_generation: int | None = None


class Status(_Base, frozen=True):
    """What anygpu said of the object last."""

    observed_generation: int | None = None
    conditions: list[Condition] | None = None
    in_force: str | None = None


class Object(_Base, frozen=True):
    """An object as the API has it."""

    kind: str = ""
    metadata: Metadata = Metadata()
    spec: dict[str, Any] | None = None
    status: Status | None = None


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which object."""

    kind: str
    namespace: str
    """Empty: the kind has none."""
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of an object."""

    reason: Reason
    message: str
    in_force: str | None = None
    """The spec (JSON) that counts in place of the object's own; None: its own, or none."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    """An object with what its spec says."""

    object: Object
    value: Value | None
    problem: str | None
    last_good: tuple[Value, str] | None
    """By its status: value and spec (JSON) that were in force before this process knew the object."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Force:
    """What counts of an object."""

    value: Value
    spec: str


class Registered:
    """The objects that admins wrote; `settle` says what of them counts."""

    def __init__(self, shipped: Catalogue) -> None:
        self._shipped = shipped
        self._entries: dict[Key, _Entry] = {}
        self._force: dict[Key, _Force] = {}
        self._settled: dict[Key, str] = {}
        """What was in force when it was judged last."""
        self._dirty = False
        self.catalogue = shipped
        """The capability DB in force."""
        self.policies: Mapping[str, resources.PlacementPolicySpec] = {}
        """The policies in force, by namespace."""
        self.verdicts: Mapping[Key, Verdict] = {}

    def put(self, kind: str, found: Object) -> None:
        """Take an object as it is now."""
        key = _key(kind, found)
        old = self._entries.get(key)
        if old is not None and old.object.metadata.uid == found.metadata.uid and old.object.spec == found.spec:
            self._entries[key] = dataclasses.replace(old, object=found)  # as after our own write to its status
            return
        if old is not None and old.object.metadata.uid != found.metadata.uid:
            self._force.pop(key, None)  # made anew under the name of one that is gone
        value, problem = _parse(key, found.spec or {})
        self._entries[key] = _Entry(found, value, problem, _last_good(key, found, value))
        self._dirty = True

    def remove(self, kind: str, found: Object) -> None:
        """Forget an object."""
        if self._entries.pop(_key(kind, found), None) is not None:
            self._force.pop(_key(kind, found), None)
            self._dirty = True

    def replace(self, kind: str, found: Iterable[Object]) -> None:
        """Take the whole list of a kind."""
        there = {_key(kind, each): each for each in found}
        for key in [key for key in self._entries if key.kind == kind and key not in there]:
            self.remove(kind, self._entries[key].object)
        for each in there.values():
            self.put(kind, each)

    def objects(self) -> Iterator[tuple[Key, Object]]:
        """Every object, the invalid ones too."""
        yield from ((key, entry.object) for key, entry in self._entries.items())

    def origin(self, kind: str, name: str) -> Literal["shipped", "registered", "override"]:
        """Whether an entry of the DB ships with anygpu, was registered, or was registered in place of a shipped one."""
        if Key(kind, "", name) not in self._force:
            return "shipped"
        shipped = self._shipped.get(name) if kind == "GPUSKU" else self._shipped.models.get(name)
        return "override" if shipped else "registered"

    def settle(self) -> bool:
        """Judge all objects anew where one changed; returns whether what is in force is another now."""
        if not self._dirty:
            return False
        self._dirty = False
        said: dict[Key, Verdict] = {}
        skus = self._skus(said)
        profiles = self._profiles(said)
        self.policies = self._policies(said, skus)
        cluster = self.policies.get(resources.SYSTEM_NAMESPACE)
        self.catalogue = Catalogue(skus, profiles, cluster.prices if cluster else ())
        self.verdicts = said
        before, self._settled = self._settled, {key: each.spec for key, each in self._force.items()}
        return before != self._settled

    # --- One kind after the other -------------------------------------------------------------------------------------

    def _ordered(self, kind: str) -> list[tuple[Key, _Entry]]:
        found = [(key, entry) for key, entry in self._entries.items() if key.kind == kind]
        return sorted(found, key=lambda each: (each[1].object.metadata.creation_timestamp or "", each[0]))

    def _accept(self, key: Key, entry: _Entry) -> None:
        assert entry.value is not None  # noqa: S101 - asked only of what parsed
        self._force[key] = _Force(entry.value, _text(entry.object.spec))

    def _fall_back(self, key: Key, entry: _Entry) -> _Force | None:
        """What was last good, from memory or else from the object's status; None: it never was good."""
        known = self._force.get(key)
        if known is None and entry.last_good is not None:
            known = _Force(*entry.last_good)
        return known

    def _refuse(self, said: dict[Key, Verdict], key: Key, reason: Reason, text: str) -> None:
        force = self._force.get(key)
        kept = "; the last good version stays in force" if force else "; it counts for nothing until then"
        said[key] = Verdict(reason, text + kept, force.spec if force else None)

    def _skus(self, said: dict[Key, Verdict]) -> Catalogue:
        """The shipped SKUs and those registered that agree with them and with each other."""
        ordered = self._ordered("GPUSKU")
        force = {key: self._force.pop(key) for key, _ in ordered if key in self._force}
        # What was in force comes first: a newcomer takes nothing from it.
        known = {key: each for key, entry in ordered if (each := force.get(key) or self._fall_back(key, entry))}
        try:
            self._force |= known
            self._with_skus()
        except errors.CatalogueError:  # as when a shipped SKU is back whose label another was given meanwhile
            self._force = {key: each for key, each in self._force.items() if key not in known}
            for key, each in sorted(known.items(), key=lambda item: item[0] not in force):
                if self._clash(each.value) is None:
                    self._force[key] = each
        # A change may free what another object asks, so until nothing changes.
        open_, done = list(ordered), False
        while not done:
            done = True
            for key, entry in list(open_):
                current = self._force.get(key)
                if current is not None and current.value == entry.value:
                    self._accept(key, entry)
                    open_.remove((key, entry))
                elif entry.value is not None and self._clash(entry.value) is None:
                    self._accept(key, entry)
                    open_.remove((key, entry))
                    done = False
        for key, entry in ordered:
            if entry.problem is not None:
                self._refuse(said, key, "Invalid", entry.problem)
            elif (key, entry) in open_:
                self._refuse(said, key, "Clash", self._clash(entry.value) or "")
            else:
                said[key] = Verdict("Accepted", "in force")
        return self._with_skus()

    def _with_skus(self, without: str | None = None) -> Catalogue:
        found = {sku.id: sku for sku in self._shipped}
        for key in sorted(key for key in self._force if key.kind == "GPUSKU" and key.name != without):
            value = self._force[key].value
            if isinstance(value, Sku):
                found[value.id] = value
        if without is not None:
            found.pop(without, None)
        return Catalogue(found.values(), self._shipped.models)

    def _clash(self, value: Value | None) -> str | None:
        """Which other SKU means already what this one claims; None: none does."""
        if not isinstance(value, Sku):
            return None
        found = self._with_skus(without=value.id).clash(value)
        if found is None:
            return None
        field, claimed, owner = found
        return (
            f"spec.{problems.camel(field)}: {claimed!r} already means {owner.id}; drop it here"
            f"{'' if self._shipped.get(owner.id) is owner else f', or from GPUSKU {owner.id}'}"
        )

    def _profiles(self, said: dict[Key, Verdict]) -> models.Profiles:
        found = {profile.id: profile for profile in self._shipped.models}
        for key, entry in self._ordered("ModelProfile"):
            if entry.value is not None:
                self._accept(key, entry)
                said[key] = Verdict("Accepted", "in force")
            else:
                if known := self._fall_back(key, entry):
                    self._force[key] = known
                self._refuse(said, key, "Invalid", entry.problem or "")
            force = self._force.get(key)
            if force is not None and isinstance(force.value, models.ModelProfile):
                found[key.name] = force.value
        return models.Profiles(found.values())

    def _policies(self, said: dict[Key, Verdict], catalogue: Catalogue) -> dict[str, resources.PlacementPolicySpec]:
        found: dict[str, resources.PlacementPolicySpec] = {}
        for key, entry in self._ordered("PlacementPolicy"):
            problem = entry.problem
            if isinstance(entry.value, resources.PlacementPolicySpec):
                problem = problems.of_policy(entry.value, key.namespace, catalogue)
            if problem is None:
                self._accept(key, entry)
                said[key] = Verdict("Accepted", "in force")
            else:
                if known := self._fall_back(key, entry):
                    self._force[key] = known
                self._refuse(said, key, "Invalid", problem)
            force = self._force.get(key)
            if force is not None and isinstance(force.value, resources.PlacementPolicySpec):
                found[key.namespace] = force.value
        return found


def _key(kind: str, found: Object) -> Key:
    return Key(kind, (found.metadata.namespace or "") if resources.KINDS[kind].namespaced else "", found.metadata.name)


def _text(spec: dict[str, Any] | None) -> str:
    return json.dumps(spec or {}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _last_good(key: Key, found: Object, value: Value | None) -> tuple[Value, str] | None:
    """The version that the object's status says is in force; None: it names none that is valid."""
    status = found.status or Status()
    ready = next((each for each in status.conditions or () if each.type == READY), None)
    if ready and value and ready.status == "True" and ready.observed_generation == found.metadata.generation:
        return value, _text(found.spec)
    text = status.in_force
    if text is None:
        return None
    try:
        spec = json.loads(text)
    except ValueError:
        return None
    value = _parse(key, spec)[0] if isinstance(spec, dict) else None
    return None if value is None else (value, text)


def _parse(key: Key, spec: dict[str, Any]) -> tuple[Value | None, str | None]:
    """What a spec says, or what is wrong with it as far as the object alone tells."""
    named: dict[str, Any] = {
        "id": key.name,
        "provenance": Provenance(confidence="seen", sources=(f"{key.kind} {key.name} of this cluster",)),
    }
    try:
        stated = resources.KINDS[key.kind].spec.model_validate(spec, by_alias=True, by_name=False)
        if isinstance(stated, resources.GPUSKUSpec):
            sku = Sku.model_validate({**dict(stated), **named})
            Catalogue([sku], models.Profiles([]))
            return sku, None
        if isinstance(stated, resources.ModelProfileSpec):
            profile = models.ModelProfile.model_validate({**dict(stated), **named})
            models.workload(profile, None, None, None).on(1)  # a profile that cannot be sized serves nobody
            return profile, None
    except pydantic.ValidationError as error:
        return None, problems.of_validation(error)
    except errors.CatalogueError as error:
        return None, f"spec.{problems.camel(str(error).removeprefix(f'{key.name}: '))}"
    except errors.ModelError as error:
        return None, f"spec: {problems.camel(str(error))}"
    if key.name != resources.DEFAULT:
        return None, f"metadata.name: {key.name!r}: a namespace has one PlacementPolicy, and its name is default"
    return (stated, None) if isinstance(stated, resources.PlacementPolicySpec) else (None, "spec: is of no kind")
