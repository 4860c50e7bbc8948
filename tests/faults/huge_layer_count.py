"""A config.json of 500 bytes that says num_hidden_layers = 10^6 (10^9): one line, or time and memory without end?"""

import json
import resource
import subprocess
import sys
import time

from _common import TMP, end, llama

from dirasym import models

if len(sys.argv) > 1:
    try:
        models.load_pretrained(sys.argv[1], scan_layers=sys.argv[2] == "scan")
    except ValueError as e:
        print("ValueError", str(e)[:100])
    sys.exit()
d = TMP / "d"
llama(d)
bad = []
for n, scan in ((10**6, "no"), (10**9, "scan")):
    f = json.loads((d / "config.json").read_text())
    f["num_hidden_layers"] = n
    (d / "config.json").write_text(json.dumps(f))
    q = subprocess.Popen(
        [sys.executable, __file__, str(d), scan],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30,) * 2),
    )
    t = time.time()
    peak = 0
    while q.poll() is None and time.time() - t < 60:
        try:
            peak = max(
                peak,
                int(
                    [l for l in open(f"/proc/{q.pid}/status") if l.startswith("VmHWM")][0].split()[
                        1
                    ]
                )
                // 1024,
            )
        except Exception:
            pass
        time.sleep(0.2)
    hung = q.poll() is None
    q.kill()
    out = q.communicate()[0].strip()
    print(
        f"{n} layers (scan: {scan}): {'still running after 60 s' if hung else out or f'exit {q.returncode}'}, peak {peak} MB"
    )
    if hung or q.returncode or peak > 4000:
        bad.append(n)
end(bad)
