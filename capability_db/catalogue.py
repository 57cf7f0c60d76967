"""All that is known of GPU models, of models that run on them, and of prices, with exact lookups."""

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from capability_db import errors, models, partitions, resources
from capability_db.sku import Sku, VendorName

Pairs = tuple[tuple[str, str], ...]
Key = TypeVar("Key")


class Catalogue:
    """SKUs in their order, and indices over how node objects name them; nothing in it changes after construction."""

    __slots__ = ("_by_cloud", "_by_id", "_by_pci", "_by_product", "_cloud_keys", "_prices", "models")

    def __init__(
        self,
        skus: Iterable[Sku],
        profiles: models.Profiles | None = None,
        prices: Iterable[resources.Price] = (),
    ) -> None:
        """Index the SKUs; raises CatalogueError naming SKU and field where they contradict themselves or each other.

        Profiles that are None are those that ship with anygpu. Prices go before those that SKUs state themselves.
        """
        self.models = models.Profiles.builtin() if profiles is None else profiles
        self._prices: dict[str, tuple[resources.Price, ...]] = {}
        for price in prices:
            self._prices[price.sku] = (*self._prices.get(price.sku, ()), price)
        self._by_id: dict[str, Sku] = {}
        self._by_product: dict[tuple[VendorName, str], Sku] = {}
        self._by_pci: dict[tuple[VendorName, str], tuple[Sku, ...]] = {}
        self._by_cloud: dict[Pairs, Sku] = {}
        for sku in skus:
            if sku.id in self._by_id:
                raise errors.CatalogueError(f"{sku.id}: id: two SKUs have it")
            _check(sku)
            self._by_id[sku.id] = sku
            for value in sku.match.product:
                _claim(self._by_product, (sku.vendor, value), sku, "match.product", value)
            for entry in sku.match.cloud:
                _claim(self._by_cloud, _pairs(entry, sku), sku, "match.cloud", entry)
        self._by_pci = _index_pci(self._by_id.values())
        self._cloud_keys = frozenset(key for pairs in self._by_cloud for key, _ in pairs)

    @classmethod
    def builtin(cls) -> "Catalogue":
        """The models that ship with anygpu; read once."""
        return _builtin()

    def get(self, sku_id: str) -> Sku | None:
        """The SKU of exactly this id."""
        return self._by_id.get(sku_id)

    def nearest(self, sku_id: str) -> str | None:
        """The id closest to a misspelt one, those that begin with it first; None: nothing is close."""
        wanted = sku_id.lower()
        longer = [each for each in self._by_id if wanted and each.startswith(wanted)]
        near = difflib.get_close_matches(wanted, longer or self._by_id, n=1, cutoff=0.0 if longer else 0.6)
        return near[0] if near else None

    def by_product(self, vendor: VendorName, label_value: str) -> Sku | None:
        """The SKU that the vendor's product label names by exactly this value."""
        return self._by_product.get((vendor, label_value))

    def by_pci(self, vendor: VendorName, device_id: str) -> tuple[Sku, ...]:
        """The SKUs of a PCI device id in lower-case hex.

        An id in `match.pci` gives its one SKU. One in `match.pci_shared` gives every candidate, and even a single
        candidate is a guess: cards that are no SKU carry the id too.
        """
        return self._by_pci.get((vendor, device_id), ())

    def by_cloud(self, labels: Mapping[str, str]) -> Sku | None:
        """The SKU that cloud labels name: all `key=value` of one entry, of several entries the one that says most."""
        if self._cloud_keys.isdisjoint(labels):
            return None
        found = [(len(pairs), sku) for pairs, sku in self._by_cloud.items() if _holds(labels, pairs)]
        most = max((size for size, _ in found), default=0)
        left = {sku.id: sku for size, sku in found if size == most}
        return next(iter(left.values())) if len(left) == 1 else None

    def price(self, skus: Sequence[Sku], labels: Mapping[str, str]) -> float | None:
        """USD an hour of a device on a node with these labels; None: unknown, be it of one of the possible models.

        Of a SKU's prices that hold on the node the one with most labels counts, else what the SKU states itself. A
        device that may be of several models costs what the dearest does.
        """
        found = [self._price(sku, labels) for sku in skus]
        known = [price for price in found if price is not None]
        return max(known) if known and len(known) == len(found) else None

    def _price(self, sku: Sku, labels: Mapping[str, str]) -> float | None:
        holding = [
            (len(price.node_labels or {}), price.usd_hour)
            for price in self._prices.get(sku.id, ())
            if _holds(labels, (price.node_labels or {}).items())
        ]
        return max(holding)[1] if holding else sku.price_usd_hour

    def cheapest(self, sku: Sku) -> float | None:
        """The least USD an hour that a device of the SKU costs on any node there might be; None: unknown."""
        stated = [price.usd_hour for price in self._prices.get(sku.id, ())]
        return min([*stated, *([sku.price_usd_hour] if sku.price_usd_hour is not None else [])], default=None)

    def clash(self, sku: Sku) -> tuple[str, str, Sku] | None:
        """What of a SKU, (field, value), means another SKU already, and which; None: nothing does."""
        for value in sku.match.product:
            if (owner := self._by_product.get((sku.vendor, value), sku)).id != sku.id:
                return "match.product", value, owner
        for entry in sku.match.cloud:
            if (owner := self._by_cloud.get(_pairs(entry, sku), sku)).id != sku.id:
                return "match.cloud", entry, owner
        for field, ids in (("match.pci", sku.match.pci), ("match.pci_shared", sku.match.pci_shared)):
            for device_id in ids:
                for owner in self.by_pci(sku.vendor, device_id):
                    alone = field == "match.pci" or device_id in owner.match.pci
                    if owner.id != sku.id and alone:
                        return field, device_id, owner
        return None

    def reads_alike(self, other: "Catalogue") -> bool:
        """Whether node objects mean the same, prices too, by another catalogue."""
        return self._prices == other._prices and list(self) == list(other)

    def __iter__(self) -> Iterator[Sku]:
        return iter(self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)


@functools.lru_cache(maxsize=1)
def _builtin() -> Catalogue:
    try:
        return Catalogue(TypeAdapter(tuple[Sku, ...]).validate_python(partitions.load_data("skus.yaml")))
    except ValidationError as error:
        raise errors.CatalogueError(f"skus.yaml: {error}") from error


def _claim(index: dict[Key, Sku], key: Key, sku: Sku, field: str, value: str) -> None:
    owner = index.setdefault(key, sku)
    if owner is not sku:
        raise errors.CatalogueError(f"{sku.id}: {field}: {value!r} already means {owner.id}")


def _pairs(entry: str, sku: Sku) -> Pairs:
    pairs = tuple(sorted((key, value) for key, _, value in (part.partition("=") for part in entry.split(","))))
    if not all(key and value for key, value in pairs) or len({key for key, _ in pairs}) < len(pairs):
        raise errors.CatalogueError(f"{sku.id}: match.cloud: {entry!r} is not key=value[,key=value]")
    return pairs


def _holds(labels: Mapping[str, str], pairs: Iterable[tuple[str, str]]) -> bool:
    return all(labels.get(key) == value for key, value in pairs)


def _index_pci(skus: Iterable[Sku]) -> dict[tuple[VendorName, str], tuple[Sku, ...]]:
    unique: dict[tuple[VendorName, str], Sku] = {}
    shared: dict[tuple[VendorName, str], tuple[Sku, ...]] = {}
    for sku in skus:
        for device_id in sku.match.pci:
            _claim(unique, (sku.vendor, device_id), sku, "match.pci", device_id)
        for device_id in sku.match.pci_shared:
            shared[sku.vendor, device_id] = (*shared.get((sku.vendor, device_id), ()), sku)
    for (vendor, device_id), candidates in shared.items():
        if owner := unique.get((vendor, device_id)):
            raise errors.CatalogueError(
                f"{candidates[0].id}: match.pci_shared: {device_id!r} is said to mean only {owner.id}"
            )
    return {key: (sku,) for key, sku in unique.items()} | shared


def _check(sku: Sku) -> None:
    """Raise CatalogueError where a SKU names what the data does not have."""
    if sku.mig is not None and sku.mig not in partitions.mig_keys():
        known = ", ".join(partitions.mig_keys())
        raise errors.CatalogueError(f"{sku.id}: mig: {sku.mig!r} is no geometry; known are {known}")
