"""What SSD is compared with: decoders of the same form as ``safedraft.decode.decode``."""

from __future__ import annotations

from safedraft.decode import decode
from safedraft.defences.target_only import target_only

DEFENCES = {"ssd": decode, "target_only": target_only}
"""By the name that ``Pair.stream`` takes."""
