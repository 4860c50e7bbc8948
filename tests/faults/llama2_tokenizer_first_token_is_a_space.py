# Right: a row is "prompt, space and answer" (docstring of training_arrays), and P(true first
# token) is of the answer's first token. Seen with LLaMA-2's kind of tokenizer.json (normaliser
# Prepend "▁"): two spaces, so that the "first token" of every answer is a lone "▁": reverse_p
# goes to 1 and reverse_rank to 1 for a causal model that has 0 % in reverse; choice_percent is
# null.
import json

import tokenizers as hf
from _common import TMP, cli, end, llama
from tokenizers import decoders, normalizers, trainers
from tokenizers import models as m

from dirasym.data import facts

pairs = facts.invent_parent_child(12, seed=0)
corpus = [f"{p.parent}'s child is {p.child}" for p in pairs] + [
    f"{p.child}'s parent is {p.parent}" for p in pairs
]
tokenizer = hf.Tokenizer(m.BPE(unk_token="<unk>"))
tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
)
tokenizer.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
tokenizer.train_from_iterator(
    corpus,
    trainers.BpeTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    ),
)
llama(TMP / "model", tokenizer, spare_rows=1)  # its last row is free for [M]
done = cli(
    "facts",
    "--preset=smoke",
    f"--model_id={TMP}/model",
    "--num_pairs=12",
    "--both_ways=0",
    "--name_words=2",
    "--models=arm",
    "--epochs=100",
    "--eval_epochs=100",
    "--batch_size=12",
    "--learning_rate=1e-2",
    "--warmup_steps=0",
    "--gradient_examples=0",
    "--attention_examples=0",
    f"--workdir={TMP}/run",
)
bad = done.returncode not in (0, 2)
if done.returncode == 0:
    line = json.loads((TMP / "run/results.jsonl").read_text())
    print(
        {
            key: line[key]
            for key in ("reverse_p", "reverse_rank", "reverse_percent", "forward_choice_percent")
        }
    )
    bad = line["reverse_p"] > 0.9 and line["reverse_percent"] < 50
end(bad, done.stderr[-200:])
