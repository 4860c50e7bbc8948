"""Bad public files for facts, through the command line: one line that names the file, exit 2, nothing written?"""

from _common import TMP, cli, end, is_one_line

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
    folder = TMP / name.replace(" ", "_")
    folder.mkdir()
    (folder / file).write_bytes(data)
    given = (
        [f"--model_id={folder}"] if kind == "model" else [f"--data={kind}", f"--data_path={folder}"]
    )
    done = cli("facts", "--preset=smoke", *given, f"--workdir={TMP}/w")
    ok = is_one_line(done) and str(folder) in done.stderr and not (TMP / "w").exists()
    bad += not ok
    print("ok  " if ok else "FAIL", name, "-> exit", done.returncode, done.stderr[-120:].strip())
end(bad, f"{bad}")
