"""What a defense does for safety, usefulness and speed, measured on inspect_ai."""
