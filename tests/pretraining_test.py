import signal
import threading

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
