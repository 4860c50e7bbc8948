import doctest

import pytest

from dirasym import readers
from dirasym.data import batching, pairs, text, tokenizers


@pytest.mark.parametrize("module", [readers, batching, pairs, text, tokenizers])
def test_examples_of_the_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
