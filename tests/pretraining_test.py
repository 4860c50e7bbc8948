import dataclasses
import json
import signal
import threading

import jax
import numpy as np
import pytest

from dirasym import files, models, objectives, pretraining, stopping, training


def _pretraining(workdir):
    return pretraining.Pretraining(
        workdir,
        {"what": "test"},
        models.Transformer(models.gpt2(11, num_layers=1, width=8, num_heads=2, max_len=8)),
        np.zeros((4, 8), np.int32),
        objectives.next_token,
        training.make_optimizer(1e-3),
        num_steps=2,
        eval_every=2,
        batch_size=2,
    )


def test_who_waits_for_another_s_pretraining_hears_signals(tmp_path):
    with files.locked(tmp_path / ".model.lock"), stopping.Stopping():
        threading.Timer(0.3, signal.raise_signal, [signal.SIGTERM]).start()
        with pytest.raises(stopping.Stopped, match="SIGTERM: another process trains"):
            _pretraining(tmp_path / "model").params()
    assert not (tmp_path / "model").exists()


def test_a_pretrained_model_is_saved_with_its_fields_and_begins_where_it_is_told(tmp_path):
    base = _pretraining(tmp_path / "model")
    weights = lambda key: {"w": jax.random.normal(key, (3,))}  # noqa: E731
    told = dict(start=weights, summarize=lambda history: {"a": 1}, more_fields={"eos_token_id": 5})
    one = dataclasses.replace(base, **told)
    run = one.run()
    assert run.summarize({}) == {"a": 1}
    for seed in (0, 1):
        want = weights(jax.random.key(seed))["w"]
        np.testing.assert_array_equal(run.init(seed).params["w"], want)
    one._save(base.init(0), tmp_path)
    assert json.loads((tmp_path / "model/model/config.json").read_text())["eos_token_id"] == 5
