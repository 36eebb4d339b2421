"""What the algorithm runs on: sessions that take token ids and give logits."""
