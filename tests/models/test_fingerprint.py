"""What tells one model's weights from another's."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from safedraft.core.errors import SafeDraftError
from safedraft.models.fingerprint import fingerprint


def test_the_same_weights_have_the_same_fingerprint_however_they_are_stored(tmp_path, tiny_pair):
    weights = load_file(tiny_pair[0] / "model.safetensors")
    names = sorted(weights)
    renamed = {f"other.{name}": weights[name] for name in names}
    save_file({name: renamed[name] for name in sorted(renamed)[:4]}, tmp_path / "a.safetensors")
    save_file({name: renamed[name] for name in sorted(renamed)[4:]}, tmp_path / "b.safetensors")
    twice = {"again": weights[names[0]].clone()}
    save_file(twice, tmp_path / "c.safetensors", metadata={"format": "pt"})
    assert fingerprint(tmp_path) == fingerprint(tiny_pair[0])


def test_other_weights_have_another(tmp_path, tiny_pair):
    assert fingerprint(tiny_pair[0]) != fingerprint(tiny_pair[1])
    weights = load_file(tiny_pair[0] / "model.safetensors")
    found = set()
    for change in (lambda w: w.T.contiguous(), lambda w: w + 1, lambda w: w.to(torch.bfloat16)):
        changed = {**weights, "lm_head.weight": change(weights["lm_head.weight"])}
        save_file(changed, tmp_path / "model.safetensors")
        found.add(fingerprint(tmp_path))
    assert len({*found, fingerprint(tiny_pair[0])}) == 4


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(SafeDraftError, match="not a file of safetensors"):
        fingerprint(tmp_path)
