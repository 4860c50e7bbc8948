"""World A's baseline without attention: a string in, all characters of another out at once."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from dirasym.models import layers


class StringMLP(nn.Module):
    """p(target_p | source) for every position p in parallel (arXiv 2511.19997's MLP).

    Each source character is embedded, the embeddings are concatenated, then num_layers times
    h = LayerNorm(relu(W h + b)), and a linear layer gives str_len·vocab_size logits.
    Initialised as PyTorch does by default: linear ±1/√fan_in, embedding N(0, 1).

    The first layer acts on embedded characters, so W_s e(c) takes one of str_len·vocab_size
    values: they are computed once a batch, and looked up.
    """

    vocab_size: int
    str_len: int
    embed_dim: int = 64
    width: int = 512
    num_layers: int = 4

    @nn.compact
    def __call__(self, tokens_BL):
        """int tokens_BL, the source in [:, :str_len] -> logits_BLV, zeros at the source.

        L is 2·str_len: the target's positions follow the source's, and are not read.
        """
        length, vocab = self.str_len, self.vocab_size
        embedding_VD = self.param("embedding", nn.initializers.normal(1.0), (vocab, self.embed_dim))
        linear = layers.uniform_fan_in(length * self.embed_dim)
        first_LDF = self.param("first_kernel", linear, (length, self.embed_dim, self.width))
        bias_F = self.param("first_bias", linear, (self.width,))
        table = jnp.einsum("vd,ldf->lvf", embedding_VD, first_LDF).reshape(-1, self.width)
        x_BF = table[tokens_BL[:, :length] + vocab * jnp.arange(length)[None]].sum(axis=1)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)  # PyTorch's
        x_BF = norm(name="norm_0")(nn.relu(x_BF + bias_F[None]))
        linear = layers.uniform_fan_in(self.width)
        for layer in range(1, self.num_layers):
            x_BF = nn.Dense(
                self.width, kernel_init=linear, bias_init=linear, name=f"linear_{layer}"
            )(x_BF)
            x_BF = norm(name=f"norm_{layer}")(nn.relu(x_BF))
        head = nn.Dense(length * vocab, kernel_init=linear, bias_init=linear, name="head")
        logits_BLV = head(x_BF).reshape(-1, length, vocab)
        return jnp.pad(logits_BLV, ((0, 0), (length, 0), (0, 0)))
