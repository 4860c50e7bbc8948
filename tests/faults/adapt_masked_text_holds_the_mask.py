# Right: exit 2 and one line that the text holds [M] (as `facts` says) and that --mask_id chooses
# another. Seen: the default [M] is the embedding's last row; where that is an ordinary token,
# exit 3 "loss is not finite at step 1".
import pydoc_data.topics

import tokenizers as hf
from _common import TMP, cli, end, is_one_line, llama
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers import models as m

tokenizer = hf.Tokenizer(m.BPE())
tokenizer.pre_tokenizer, tokenizer.decoder = (
    pre_tokenizers.ByteLevel(add_prefix_space=False),
    decoders.ByteLevel(),
)
tokenizer.train_from_iterator(
    list(pydoc_data.topics.topics.values())[:5],
    trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ),
)
llama(TMP / "model", tokenizer)  # its last row is an ordinary token
done = cli("adapt_masked", "--preset=smoke", f"--model_id={TMP}/model", f"--workdir={TMP}/run")
print(done.returncode, done.stderr.strip()[-200:])
end(not is_one_line(done) or "[M]" not in done.stderr)
