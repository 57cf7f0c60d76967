"""Kubernetes quantities as whole numbers: bytes, millicores, devices."""

import decimal
import functools
import re

from kubernetes.utils import quantity

from capability_db import errors

# The library accepts more than Kubernetes does (underscores, other scripts' digits, exponents of any size).
_QUANTITY = re.compile(
    r"[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?", re.ASCII
)

# More digits than any such quantity has in thousandths, so that nothing is rounded on the way.
_EXACT = decimal.Context(prec=300)

MIB = 1024 * 1024


@functools.lru_cache(maxsize=4096)
def milli(text: str | int) -> int:
    """The quantity times 1000, rounded up, as Kubernetes rounds what is finer; raises QuantityError."""
    text = str(text)
    if not _QUANTITY.fullmatch(text):
        raise errors.QuantityError(f"{text!r} is not a Kubernetes quantity; write for example 500m, 4, 16Gi or 16G")
    with decimal.localcontext(_EXACT):
        number: decimal.Decimal = quantity.parse_quantity(text)  # type: ignore[no-untyped-call]
        return int((number * 1000).to_integral_value(decimal.ROUND_CEILING))


def units(text: str | int) -> int:
    """The quantity rounded up to a whole number: bytes of `16Gi`, devices of `2`; raises QuantityError."""
    return -(-milli(text) // 1000)


def gib(mib: float) -> str:
    """MiB as people read them: `79.6 GiB`, `192 GiB`."""
    return f"{mib / 1024:.1f}".removesuffix(".0") + " GiB"
