"""Training the deep-aligned draft: its data, the loop, distillation, checks and model card."""
