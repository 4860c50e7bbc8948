"""dirasym measures, and explains, why sequence models learn "A is B" and cannot say "B is A"."""

__version__ = "0.1.0"
