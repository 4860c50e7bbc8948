"""Arrays and their exact entropies. Data knows no model."""
