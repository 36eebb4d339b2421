"""The effect of a defense on safety, usefulness and speed, measured on inspect_ai."""
