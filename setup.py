"""For tools that ask for a setup.py; what is installed is said in pyproject.toml."""

from setuptools import setup

setup()
