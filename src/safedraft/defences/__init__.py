"""What SSD is compared with, one file each."""

from __future__ import annotations

from safedraft.decode import Decoder, decode
from safedraft.defences.target_only import target_only

DECODERS: dict[str, Decoder] = {"ssd": decode, "target_only": target_only}
"""Every way to take tokens from the two models, by name."""

__all__ = ["DECODERS", "target_only"]
