"""Reports on finished logs: figures with their intervals, plots, outcomes side by side."""
