"""Bad public files for facts, through the command line: one line that names the file, exit 2, nothing written?"""

# slow
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ.update(JAX_PLATFORMS="cpu", PYTHONPATH=os.getcwd())
bad = 0
CASES = {
    "csv field of 200,000": (
        "p2c",
        "parent_child_pairs.csv",
        b"child,parent\n" + b"a" * 200_000 + b",b\n",
    ),
    "csv with an open quote": (
        "p2c",
        "parent_child_pairs.csv",
        b'child,parent\n"a' + b"x\n" * 200_000,
    ),
    "csv in latin-1": ("p2c", "parent_child_pairs.csv", b"child,parent\n\xff,b\n"),
    "T-REx nested 10^6 deep": ("trex", "a.json", b"[" * 10**6),
    "p2d nested 10^6 deep": ("p2d", "p2d_prompts_train.jsonl", b"[" * 10**6),
    "model config.json nested": ("model", "config.json", b"[" * 10**6),
    "model with num_key_value_heads 0": (
        "model",
        "config.json",
        b'{"model_type":"llama","vocab_size":9,"hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":0,"max_position_embeddings":9}',
    ),
}
for name, (kind, file, data) in CASES.items():
    tmp = pathlib.Path(tempfile.mkdtemp())
    (tmp / "d").mkdir()
    (tmp / "d" / file).write_bytes(data)
    flags = (
        [f"--model_id={tmp / 'd'}"]
        if kind == "model"
        else [f"--data={kind}", f"--data_path={tmp / 'd'}"]
    )
    r = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.facts",
            "--preset=smoke",
            *flags,
            f"--workdir={tmp / 'w'}",
        ],
        capture_output=True,
        text=True,
    )
    lines = r.stderr.strip().splitlines()
    ok = (
        r.returncode == 2
        and len(lines) == 1
        and str(tmp / "d") in lines[0]
        and not (tmp / "w").exists()
    )
    bad += not ok
    print(
        "ok  " if ok else "FAIL",
        name,
        "-> exit",
        r.returncode,
        len(lines),
        "lines:",
        lines[-1][:120],
    )
    shutil.rmtree(tmp)
print(f"FAIL: {bad}" if bad else "PASS")
sys.exit(bool(bad))
