"""Sizes of memory as people write them."""

import math
import re
from typing import Final

from orchestrator.errors import InvalidRequest

_MIB: Final = {
    "": 1,
    "m": 1,
    "mb": 1,
    "mib": 1,
    "g": 1024,
    "gb": 1024,
    "gib": 1024,
    "t": 1 << 20,
    "tb": 1 << 20,
    "tib": 1 << 20,
}
_SIZE: Final = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*$")


def parse_mebibytes(size: int | str | None) -> int | None:
    """Return a size such as ``12GiB``, ``800MiB``, ``12G`` or a number of MiB as whole MiB; None stays None.

    ``G`` and ``GB`` mean GiB here, as on a GPU's data sheet.

    Raises:
        InvalidRequest: If it is not a size, or below 1 MiB.
    """
    if size is None:
        return None
    match = _SIZE.match(str(size))
    factor = _MIB.get(match[2].lower()) if match else None
    mebibytes = float(match[1]) * factor if match and factor else 0
    if not 1 <= mebibytes < math.inf:
        raise InvalidRequest(f"{size!r} is not a size of memory; write 12GiB or 800MiB")
    return int(mebibytes)
