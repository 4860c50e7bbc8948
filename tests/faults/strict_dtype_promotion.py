# Right: the code converts dtypes itself, so that it runs under JAX_NUMPY_DTYPE_PROMOTION=strict as
# it does under JAX_NUMPY_RANK_PROMOTION=raise. Seen: TypePromotionError (float32 with bool),
# traceback, exit 1. (Low: a debugging setting.)
from _common import TINY_TOY, TMP, cli, end

strict = {"JAX_NUMPY_DTYPE_PROMOTION": "strict"}
done = cli("toy_reversal", *TINY_TOY, f"--workdir={TMP}/run", env=strict)
places = [
    line.strip()
    for line in done.stderr.splitlines()
    if "/experiments/" in line or "/dirasym/" in line
]
print(done.returncode, places[-1:], done.stderr.strip().splitlines()[-1:])
end(done.returncode != 0)
