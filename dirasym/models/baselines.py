"""Sequence models without attention: a perceptron on the whole prefix, and a recurrent network.

Both read tokens alone; `make_tokens_apply_fn` makes either an `ApplyFn`.
"""

import flax.linen as nn
import jax.numpy as jnp

from dirasym.models.layers import uniform_fan_in


class PrefixMLP(nn.Module):
    """A multilayer perceptron on everything read so far, by position.

        h_l = relu(b + Σ_{s≤l} W_s e(x_s)),  then num_layers − 1 times h ← relu(W h + b),

    and a linear head. Every position has its own W_s, so that order is known.

    Attributes:
      vocab_size: V.
      width: of the embedding and the hidden layers.
      num_layers: hidden layers.
      max_len: longest sequence.
    """

    vocab_size: int
    width: int
    num_layers: int
    max_len: int

    @nn.compact
    def __call__(self, tokens_BL):
        x_BLD = nn.Embed(self.vocab_size, self.width, name="embed")(tokens_BL)
        length = x_BLD.shape[1]
        if length > self.max_len:
            raise ValueError(f"sequence of {length} tokens is longer than max_len {self.max_len}")
        init = uniform_fan_in(self.max_len * self.width)
        kernel_SDF = self.param("kernel", init, (self.max_len, self.width, self.width))
        bias_F = self.param("bias", init, (self.width,))
        read_BLF = jnp.einsum("bsd,sdf->bsf", x_BLD, kernel_SDF[:length]).cumsum(axis=1)
        x_BLF = nn.relu(read_BLF + bias_F[None, None])
        for _ in range(self.num_layers - 1):
            x_BLF = nn.relu(nn.Dense(self.width)(x_BLF))
        return nn.Dense(self.vocab_size, name="head")(x_BLF)


class GRU(nn.Module):
    """Gated recurrent units (Cho et al., 2014), `num_layers` on top of each other.

    Attributes:
      vocab_size: V.
      width: of the embedding and the states.
      num_layers: layers.
    """

    vocab_size: int
    width: int
    num_layers: int

    @nn.compact
    def __call__(self, tokens_BL):
        x_BLD = nn.Embed(self.vocab_size, self.width, name="embed")(tokens_BL)
        for _ in range(self.num_layers):
            x_BLD = nn.RNN(nn.GRUCell(self.width))(x_BLD)
        return nn.Dense(self.vocab_size, name="head")(x_BLD)
