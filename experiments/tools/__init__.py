"""What serves the experiments and the docs, and trains nothing of its own."""
