# Right: what a perfect model says (the answer's own ids, decoded) is an exact match of the
# answer, or names that the tokenizer cannot give back are refused before training. Names here are
# made up.
import sys
import unicodedata

from dirasym.data import text, tokenizers

names = [
    "P!nk Moor",
    "A$AP Rowe",
    "AB/CD",
    "Ann–Marie Duff",
    "Jo (Joan) Dee",
    "Rosie & Co",
    "Ola “The Rock” Dahl",
    "Al‑Amin Udo",
    "Hawai‘i Kay",
    "N!xo Toma",
    "Kim @ Home",
    "Tess 💃 Crane",
    "Zoë\u200bKay",
    "Udo\u00a0Dahl",
    "Mary  Vale",
    "अनिता शर्मा",
    "สมชาย ใจดี",
    "שָׁלוֹם כהן",
    "அன்பு மணி",
    unicodedata.normalize("NFD", "Renée Vale"),
    "<eos> Smith",
    "Renée Vale",
    "宮崎 京",
    "김하나",
    "Liv O’Neil",
    "Mary-Kate Crane",
]
bad = []
for name in names:
    try:
        tokenizer = tokenizers.Words([f"{name}'s child is {name}"])
        said = tokenizer.decode(tokenizer.encode([f" {name}"])[0])
    except ValueError:
        continue
    if not text.is_exact_match(said, (name,)):
        bad.append((name, said))
        print(f"{name!r} -> {said!r}")
print(f"FAIL {len(bad)} of {len(names)}" if bad else "PASS")
sys.exit(bool(bad))
