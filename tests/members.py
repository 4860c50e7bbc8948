"""Families of test cases: all are run by the slow suite and the quick one together."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def quick(members: Iterable[Any], chosen: Sequence[Any]) -> list[Any]:
    """The members, those that are not among the chosen marked slow. Each one chosen is there."""
    members = list(members)
    assert all(one in members for one in chosen), f"{chosen} are not all among {members}"
    return [one if one in chosen else pytest.param(one, marks=pytest.mark.slow) for one in members]


def slow(member: Any) -> Any:
    """One member, or a tuple of arguments, that the quick suite leaves out."""
    values = member if isinstance(member, tuple) else (member,)
    return pytest.param(*values, marks=pytest.mark.slow)
