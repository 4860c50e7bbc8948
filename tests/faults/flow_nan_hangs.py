"""gradient_flow.flow of a field that is or becomes NaN: an error, or an endless loop?"""

import signal

import jax.numpy as jnp
import numpy as np
from _common import end

from dirasym.analysis import gradient_flow


def stop(*_):
    raise TimeoutError


signal.signal(signal.SIGALRM, stop)
bad = []
for name, field in {
    "at once": lambda y: y * np.nan,
    "infinite": lambda y: y * np.inf,
    "later": lambda y: jnp.where(y > 1.5, np.nan, y),
    "blows up": lambda y: y**2,
}.items():
    signal.alarm(30)
    try:
        print(name, gradient_flow.flow(field, np.ones(2), [0.0, 2.0]))
        bad.append(name)
    except TimeoutError:
        bad.append(name)
        print(name, "still running after 30 s")
    except RuntimeError as e:
        print(name, type(e).__name__, str(e)[:100])
end(bad, ", ".join(bad))
