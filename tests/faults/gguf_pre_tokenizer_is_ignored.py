# Right: a GGUF file whose tokenizer.ggml.pre names another way of splitting (llama-bpe, qwen2,
# deepseek-llm: digits in threes or one by one) is refused or split that way; fields that it lacks
# are a ValueError (docstring). Seen: GPT-2's splitting for all but "smollm", so "1234" is one
# token; KeyError for a file without merges or end of text. Needs `pip install gguf`.
import pathlib
import sys
import tempfile

import numpy as np

try:
    import gguf
except ImportError:
    print("PASS (skipped: pip install gguf)")
    sys.exit(0)
import tokenizers

from dirasym.models import gguf as ours

T = pathlib.Path(tempfile.mkdtemp())
tokens = [
    *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    "12",
    "123",
    "1234",
    "<|end_of_text|>",
]


def write(name, pre, merges=True):
    w = gguf.GGUFWriter(T / name, "llama")
    w.add_block_count(1)
    w.add_context_length(64)
    w.add_embedding_length(16)
    w.add_feed_forward_length(24)
    w.add_head_count(4)
    w.add_head_count_kv(4)
    w.add_rope_dimension_count(4)
    w.add_rope_freq_base(1e4)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([1] * (len(tokens) - 1) + [3])
    w.add_eos_token_id(len(tokens) - 1)
    if merges:
        w.add_token_merges(["1 2", "12 3", "123 4"])
    sizes = {
        "token_embd": (len(tokens), 16),
        "output": (len(tokens), 16),
        "output_norm": (16,),
        "blk.0.attn_norm": (16,),
        "blk.0.ffn_norm": (16,),
        "blk.0.ffn_gate": (24, 16),
        "blk.0.ffn_up": (24, 16),
        "blk.0.ffn_down": (16, 24),
    }
    sizes |= {f"blk.0.attn_{part}": (16, 16) for part in ("q", "k", "v", "output")}
    for key, size in sizes.items():
        w.add_tensor(key + ".weight", np.ones(size, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


bad = []
for pre in ("llama-bpe", "qwen2"):
    write(pre, pre)
    try:
        ours.convert_gguf(T / pre, T / f"{pre}.out")
    except ValueError as error:
        print(pre, "refused:", error)
        continue
    got = tokenizers.Tokenizer.from_file(str(T / f"{pre}.out/tokenizer.json")).encode("1234").tokens
    print(pre, got)
    if got == ["1234"]:
        bad.append(pre)
write("bare", "smollm", merges=False)
try:
    ours.convert_gguf(T / "bare", T / "bare.out")
except ValueError as error:
    print("no merges:", error)
except KeyError as error:
    print("no merges: KeyError", error)
    bad.append("KeyError")
print("FAIL " + ", ".join(bad) if bad else "PASS")
sys.exit(bool(bad))
