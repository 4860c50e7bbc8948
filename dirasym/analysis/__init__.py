"""Measurements of (apply_fn, params, batch). Analysis never trains."""
