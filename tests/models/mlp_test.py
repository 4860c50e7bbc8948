import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dirasym import models


def _model():
    model = models.StringMLP(vocab_size=5, str_len=3, embed_dim=4, width=16, num_layers=3)
    tokens_BL = jax.random.randint(jax.random.key(1), (7, 6), 0, 5)
    return model, jax.jit(model.init)(jax.random.key(0), tokens_BL)["params"], tokens_BL


def test_equals_the_plain_formula():
    """Embed, concatenate, three times LayerNorm(relu(linear)), linear to 3 × 5 logits."""
    model, params, tokens_BL = _model()
    x = params["embedding"][tokens_BL[:, :3]].reshape(7, 12)
    kernels = [params["first_kernel"].reshape(12, 16)]
    biases = [params["first_bias"]]
    for name in ("linear_1", "linear_2"):
        kernels.append(params[name]["kernel"])
        biases.append(params[name]["bias"])
    for layer, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        x = np.maximum(x @ kernel + bias[None], 0)
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        norm = params[f"norm_{layer}"]
        x = x * norm["scale"][None] + norm["bias"][None]
    want = (x @ params["head"]["kernel"] + params["head"]["bias"][None]).reshape(-1, 3, 5)
    got = jax.jit(model.apply)({"params": params}, tokens_BL)
    np.testing.assert_allclose(got[:, 3:], want, atol=1e-5)
    assert (got[:, :3] == 0).all()


def test_the_target_is_not_read():
    model, params, tokens_BL = _model()
    other = tokens_BL.at[:, 3:].set(0)
    np.testing.assert_array_equal(
        jax.jit(model.apply)({"params": params}, tokens_BL),
        jax.jit(model.apply)({"params": params}, other),
    )


def test_starts_as_pytorch_does():
    model = models.StringMLP(vocab_size=36, str_len=8)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16), int))["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 1_204_768
    assert float(params["embedding"].std()) == pytest.approx(1, abs=0.05)
    for leaf in (params["first_kernel"], params["first_bias"], params["head"]["bias"]):
        bound = 1 / np.sqrt(512)  # 8 · 64 inputs, and 512
        assert float(jnp.abs(leaf).max()) <= bound
        assert float(leaf.std()) == pytest.approx(bound / np.sqrt(3), rel=0.1)


@pytest.mark.parity
def test_has_the_parameters_and_outputs_of_the_pytorch_model():
    import torch

    nn = torch.nn
    model, params, tokens_BL = _model()
    embedding, linears, norms = nn.Embedding(5, 4), [], []
    for layer in range(3):
        linears.append(nn.Linear(12 if layer == 0 else 16, 16))
        norms.append(nn.LayerNorm(16))
    head = nn.Linear(16, 15)
    modules = nn.ModuleList([embedding, *linears, *norms, head])
    ours = sum(x.size for x in jax.tree.leaves(params))
    assert sum(p.numel() for p in modules.parameters()) == ours
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor(np.asarray(params["embedding"])))
        kernels = [params["first_kernel"].reshape(12, 16)]
        kernels += [params[f"linear_{layer}"]["kernel"] for layer in (1, 2)]
        biases = [params["first_bias"], *(params[f"linear_{n}"]["bias"] for n in (1, 2))]
        kernels.append(params["head"]["kernel"].reshape(16, 15))
        biases.append(params["head"]["bias"].reshape(15))
        for linear, kernel, bias in zip([*linears, head], kernels, biases, strict=True):
            linear.weight.copy_(torch.tensor(np.asarray(kernel).T))
            linear.bias.copy_(torch.tensor(np.asarray(bias)))
        x = embedding(torch.tensor(np.asarray(tokens_BL[:, :3]))).flatten(1)
        for linear, norm in zip(linears, norms, strict=True):
            x = norm(torch.relu(linear(x)))
        want = head(x).view(7, 3, 5).numpy()
    got = jax.jit(model.apply)({"params": params}, tokens_BL)
    np.testing.assert_allclose(got[:, 3:], want, atol=1e-5)
