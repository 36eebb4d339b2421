"""Judges: one file each; each says whether a completion is a refusal, or how harmful it is."""
