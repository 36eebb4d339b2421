"""From finished logs to a page: figures with their intervals, plots, outcomes side by side."""
