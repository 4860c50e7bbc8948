"""Experiments: one file a question. See DESIGN in BUILD_NOTES.md."""
