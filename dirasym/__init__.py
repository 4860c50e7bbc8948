"""dirasym measures, and explains, why sequence models learn "A is B" and cannot say "B is A".

A few names to begin with; the rest is in the modules, in the order in which data flows:
`data`, `models`, `objectives`, `training`, `analysis`, `report`, `measuring`.
"""

from dirasym.analysis.alignment import alignment, cross_alignment
from dirasym.analysis.theorem_b1 import theorem_b1, theorem_b1_autodiff
from dirasym.compile import compile_step
from dirasym.data.pairs import Pairs
from dirasym.measuring import measure
from dirasym.models import (
    Transformer,
    TransformerConfig,
    load_pretrained,
    make_apply_fn,
    save_pretrained,
)
from dirasym.reading import Reading
from dirasym.training import TrainState, create_state, train_step
from dirasym.types import Batch

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "Pairs",
    "Reading",
    "TrainState",
    "Transformer",
    "TransformerConfig",
    "alignment",
    "compile_step",
    "create_state",
    "cross_alignment",
    "load_pretrained",
    "make_apply_fn",
    "measure",
    "save_pretrained",
    "theorem_b1",
    "theorem_b1_autodiff",
    "train_step",
]
