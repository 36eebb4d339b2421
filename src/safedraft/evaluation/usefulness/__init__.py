"""What a defense costs: tasks whose replies are checked by programs."""
