"""Steps that the processes of one run take together, so that none waits for one that failed.

Every process of the run calls each function, in the same order.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(value: Any) -> list[Any]:
    """The JSON-like `value` of each process, by process."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(data.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def everywhere(function: Callable[[], Any], *, error: type[Exception] = RuntimeError) -> Any:
    """What `function` gives. If it fails in one process, all raise: that one its own error."""
    result, own = None, None
    try:
        result = function()
    except Exception as caught:
        own = caught
    messages = gather(None if own is None else str(own))
    if own is not None:
        raise own
    for process, message in enumerate(messages):
        if message is not None:
            raise error(f"process {process}: {message}")
    return result


def on_process_0(function: Callable[[], Any], *, error: type[Exception] = RuntimeError) -> Any:
    """What `function`, called in process 0 alone, gives there: JSON. All raise if it fails."""
    value = everywhere(lambda: function() if jax.process_index() == 0 else None, error=error)
    return gather(value)[0]
