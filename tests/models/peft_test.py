import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models
from dirasym.models import lora

pytest.importorskip("safetensors")
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
TARGETS = {
    "gpt2": (lora.GPT2_TARGETS, lora.QKV, ["c_attn", "c_proj"]),
    "llama_grouped_scaled": (
        "attention/(query|value)$|mlp/gate$",
        (),
        ["q_proj", "v_proj", "gate_proj"],
    ),
    "modernbert": (
        "attention/(query|key|value|out)$|mlp/",
        (*lora.QKV, "gate", "up"),
        ["Wqkv", "Wi", "Wo"],
    ),
}


def _adapted(name, scan_layers=False):
    targets, fused, _ = TARGETS[name]
    model, params = models.load_pretrained(FIXTURES / name, scan_layers=scan_layers)
    config = models.LoRAConfig(rank=3, alpha=5.0, targets=targets, fused=fused, dropout=0.1)
    adapters = lora.init_adapters(models.LoRA(model, config), params, jax.random.key(0))
    moved = jax.tree.map(lambda x: x + 0.3 * np.cos(np.arange(x.size)).reshape(x.shape), adapters)
    return model, params, config, moved


@pytest.mark.parametrize(
    ("name", "scan_layers"),
    [("gpt2", True), ("llama_grouped_scaled", False), ("modernbert", False)],
)
def test_adapters_come_back(name, scan_layers, tmp_path):
    model, _, config, adapters = _adapted(name, scan_layers)
    models.save_adapters(tmp_path, model, adapters, config)
    read, same = models.load_adapters(tmp_path, model)
    chex.assert_trees_all_equal(same, adapters)
    assert (read.rank, read.alpha, read.dropout, read.fused) == (3, 5.0, 0.1, config.fused)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    modules = {
        "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_proj"],
        "llama_grouped_scaled": ["mlp.gate_proj", "self_attn.q_proj", "self_attn.v_proj"],
        "modernbert": ["attn.Wo", "attn.Wqkv", "mlp.Wi", "mlp.Wo"],
    }
    assert fields["target_modules"] == modules[name]
    assert fields["fan_in_fan_out"] == (name == "gpt2")  # stored [in, out]
    assert fields["task_type"] == (None if name == "modernbert" else "CAUSAL_LM")


@pytest.mark.parity
@pytest.mark.parametrize("name", ["gpt2", "llama_grouped_scaled", "modernbert"])
def test_peft_reads_ours_and_we_read_pefts(name, tmp_path):
    import peft
    import torch
    import transformers

    model, params, config, adapters = _adapted(name)
    tokens = np.arange(12).reshape(2, 6) % 23
    variables = {"params": params, "lora": adapters}
    ours = jax.jit(models.LoRA(model, config).apply)(variables, tokens)
    models.save_adapters(tmp_path / "ours", model, adapters, config)
    auto = transformers.AutoModelForCausalLM
    if name == "modernbert":
        auto = transformers.AutoModelForMaskedLM
    base = auto.from_pretrained(FIXTURES / name)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(logits, ours, atol=1e-4)

    base = auto.from_pretrained(FIXTURES / name)
    settings = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=TARGETS[name][2], init_lora_weights=False,
        fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(base, settings).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        logits = theirs(torch.tensor(tokens)).logits.numpy()
    config, adapters = models.load_adapters(tmp_path / "theirs", model)
    variables = {"params": params, "lora": adapters}
    ours = jax.jit(models.LoRA(model, config).apply)(variables, tokens)
    np.testing.assert_allclose(ours, logits, atol=1e-4)


def test_what_is_wrong_is_named(tmp_path):
    model, _, config, adapters = _adapted("gpt2")
    models.save_adapters(tmp_path, model, adapters, config)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    for change, message in (
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"alpha_pattern": {"c_attn": 2}}, "alpha_pattern="),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"layers_to_transform": [0]}, "layers_to_transform="),
        ({"bias": "all"}, "bias='all'"),
        ({"rank_pattern": {"c_attn": 2}}, "rank_pattern="),
        ({"a_later_variant": {"x": 1}}, "a_later_variant="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"r": "2"}, "r='2' cannot be"),
        ({"r": None}, "r=None cannot be"),
        ({"r": 2.5}, "r=2.5 cannot be"),
        ({"r": 0}, "r=0 cannot be"),
        ({"r": True}, "r=True cannot be"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan cannot be"),
        ({"lora_alpha": "x"}, "lora_alpha='x' cannot be"),
        ({"lora_dropout": None}, "lora_dropout=None cannot be"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 cannot be"),
        ({"r": 4}, r"lora_A.weight has shape \(3, 16\), the model needs \(4, 16\)"),
        ({"r": 17}, r"adapter_config\.json: LoRA rank 17 exceeds blocks_0/attention/"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError, match=message):
            models.load_adapters(tmp_path, model)
    for name in ("r", "lora_alpha"):
        path.write_text(json.dumps({key: x for key, x in fields.items() if key != name}))
        with pytest.raises(ValueError, match=rf"adapter_config\.json lacks {name}"):
            models.load_adapters(tmp_path, model)
    path.write_text(json.dumps(fields))
    other, _ = models.load_pretrained(FIXTURES / "llama")
    with pytest.raises(ValueError, match=r"unknown key base_model\.model\.transformer\.h\.0"):
        models.load_adapters(tmp_path, other)
    out = adapters["blocks_1"]["attention"].pop("out")
    with pytest.raises(ValueError, match="some layers' attention/out have adapters and some"):
        models.save_adapters(tmp_path / "partial", model, adapters, config)
    assert not (tmp_path / "partial").exists()
    adapters["blocks_1"]["attention"]["out"] = out
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is missing"):
        models.load_adapters(tmp_path, model)
    adapters["blocks_1"]["attention"]["query"]["a"] = jnp.zeros((16, 3))
    with pytest.raises(ValueError, match="blocks_1/attention/query/a has no place"):
        models.save_adapters(tmp_path, model, adapters, config)


def test_what_the_format_cannot_hold_is_known_before_training():
    gpt2, _ = models.load_pretrained(FIXTURES / "gpt2")
    llama, _ = models.load_pretrained(FIXTURES / "llama", causal=False)  # still LLaMA's names
    models.check_adapters(llama, models.LoRAConfig(2, 4.0, "attention/query"))
    targets, fused, _ = TARGETS["gpt2"]
    models.check_adapters(gpt2, models.LoRAConfig(2, 4.0, targets, fused=fused))
    for model, config, message in (
        (llama, models.LoRAConfig(2, 4.0, "head$|query$"), "head/[ab] has no place"),
        (gpt2, models.LoRAConfig(2, 4.0, targets), "needs fused="),
        (llama, models.LoRAConfig(2, 4.0, "blocks_1/attention/query"), "have adapters and some"),
        (llama, models.LoRAConfig(2, 4.0, "c_attn"), "match no linear layer"),
    ):
        with pytest.raises(ValueError, match=message):
            models.check_adapters(model, config)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    model, _, config, adapters = _adapted("gpt2")
    models.save_adapters(tmp_path, model, adapters, config)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = min(tensors)
    tensors[key.replace(".weight", ".default.weight")] = tensors[key] + 1
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="is there twice"):
        models.load_adapters(tmp_path, model)
