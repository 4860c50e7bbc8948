"""A checkpoint that cannot be read just now (permission here; EMFILE, EIO, out of memory are alike) is not damaged: is it set aside, so that training starts again from 0? Needs root and setpriv."""

import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
from _common import TMP, end

from dirasym import checkpoints

if len(sys.argv) > 1:
    c = checkpoints.Checkpoints(sys.argv[1] + "/ck")
    try:
        out = c.restore({"w": jnp.ones((64, 64))})
        print("RESTORED", out and out[0])
    except checkpoints.CheckpointError as e:
        print("RAISED", type(e).__name__, str(e)[:100])
    sys.exit()
c = checkpoints.Checkpoints(TMP / "ck")
c.save(2, {"w": jnp.ones((64, 64))}, {"l": np.ones(2)})
c.save(4, {"w": jnp.ones((64, 64))}, {"l": np.ones(2)})
c.close()
hidden = [p for s in ("2", "4") for p in (TMP / "ck" / s).rglob("manifest.ocdbt")]
if os.getuid():
    print("PASS (skipped: needs root)")
    sys.exit()
for p in hidden:
    os.chown(p, 65534, 65534)
    p.chmod(0)
unprivileged = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
r = subprocess.run(
    [*unprivileged, sys.executable, __file__, str(TMP)], capture_output=True, text=True
)
left = sorted(p.name for p in (TMP / "ck").iterdir())
print(r.stdout.strip()[-200:], "|", left, r.stderr.strip()[-200:])
end("damaged" in left or "RAISED" not in r.stdout, "good checkpoints were set aside")
