"""Training of the deep-aligned draft: data, loop, distillation, checks and model card."""
