"""Does a run that is killed again and again end with the same bits as one that is left alone?

Question  Exact resume: SIGKILL by turns at random moments of a program's life and at random
          changes of its work directory (checkpoints, curves, result lines, figures), or a disk
          that is full from such a change on; restarts, and compares parameters, result lines and
          curves with an undisturbed run, timing fields apart.
Command   python -m experiments.tools.crash_test --kills=100 --full_disks=10
Cost      about 6 s a life and experiment on 2 CPU cores.
Expected  every finished run identical; a full disk ends a life in one line.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from dirasym import collecting, models, report, training
from dirasym.pieces import Piece
from dirasym.workdir import WorkDir, full_name, stored_config
from experiments import (
    adapt_masked,
    causes,
    causes_facts,
    closure,
    cures,
    cures_facts,
    dial,
    facts,
    flags,
    geometry,
    gradient_alignment,
    measure,
    patching,
    relations,
    relations_study,
    rope_bounds,
    toy_reversal,
    toy_study,
    training_dynamics,
    work,
    world_a,
    world_a_bits,
    world_a_mlp,
)
from experiments.flags import flag
from experiments.systems import cures as cures_system
from experiments.systems import cures_facts as cures_facts_system
from experiments.systems import facts as facts_system
from experiments.systems import families as families_system
from experiments.systems import relations as relations_system
from experiments.systems import toy
from experiments.systems import training_dynamics as dynamics
from experiments.systems import world_a as world_a_system

PRESETS = {"smoke": dict(kills=2), "quick": dict(kills=20), "paper": dict(kills=100)}


@dataclasses.dataclass(frozen=True)
class Program:
    """A small run of an experiment; `changes` are on top of its preset `smoke`.

    `prepare` makes in a folder what the experiment reads, and returns further changes.
    """

    page: types.ModuleType
    config_type: type
    changes: dict[str, Any]
    prepare: Callable[[pathlib.Path], dict[str, Any]] = lambda folder: {}

    def config(self) -> Any:
        """What the command line says."""
        values = self.page.PRESETS["smoke"] | self.changes
        lists = {key: tuple(x) if isinstance(x, list) else x for key, x in values.items()}
        return self.config_type(**lists)

    def arguments(self, path: pathlib.Path) -> list[str]:
        """The command line after `python -m`."""
        given = {
            key: ",".join(map(str, x)) if isinstance(x, list) else x
            for key, x in self.changes.items()
        }
        flags_given = [f"--{key}={value}" for key, value in given.items()]
        where = [f"--workdir={path.absolute()}", "--noprogress"]
        return [self.page.__name__, "--preset=smoke", *flags_given, *where]


def tiny_causal_model(folder: pathlib.Path) -> dict[str, Any]:
    """A random LLaMA that reads bytes, with a row of its embedding free for [M]."""
    import tokenizers  # an extra

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*letters, "</s>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    sizes = dict(num_layers=1, width=8, num_heads=2, num_kv_heads=2, mlp_width=8, max_len=16)
    model = models.Transformer(models.llama(len(vocab) + 1, rope_scaling=None, **sizes))
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    models.save_pretrained(
        folder / "causal", model, params, more_fields={"eos_token_id": vocab["</s>"]}
    )
    tokenizer.save(str(folder / "causal/tokenizer.json"))
    return {"model_id": str(folder / "causal")}


PROGRAMS = {
    "toy_reversal": Program(
        toy_reversal,
        toy.Config,
        {
            "models": ["mdm"], "lengths": [3], "width": 8, "seeds": [0, 1], "steps": 8,
            "eval_every": 4, "generations": 1,
        },
    ),
    "toy_study": Program(
        toy_study,
        toy_study.Config,
        {"inits": ["default"], "orders": ["random"], "steps": 8, "eval_every": 4},
    ),
    "causes": Program(
        causes,
        causes.Config,
        {"cells": ["causal/next_token"], "length": 3, "steps": 5, "eval_every": 1},
    ),
    "causes_facts": Program(
        causes_facts,
        causes_facts.Config,
        {
            "cells": ["causal/next_token"], "num_pairs": 3, "both_ways": 3, "steps": 5,
            "eval_every": 1,
        },
    ),
    "geometry": Program(
        geometry,
        causes.Config,
        {"cells": ["causal/next_token"], "length": 3, "steps": 5, "eval_every": 1},
    ),
    "patching": Program(patching, patching.Config, {"length": 3, "steps": 5, "eval_every": 1}),
    "dial": Program(
        dial, dial.Config, {"sizes": [1], "length": 2, "steps": 5, "eval_every": 1, "width": 8}
    ),
    "relations": Program(
        relations,
        relations_system.Config,
        {"embed_dim": 8, "seeds": [0, 1], "num_epochs": 6, "eval_every": 2},
    ),
    "relations_study": Program(relations_study, relations_study.Config, {"factors": ["loss"]}),
    "closure": Program(
        closure,
        families_system.Config,
        {"weight_decays": ["0", "3"], "closures": [2], "num_steps": 6, "eval_every": 2},
    ),
    "cures": Program(
        cures,
        cures_system.Config,
        {"remedies": ["copies"], "length": 3, "width": 8, "generations": 1},
    ),
    "cures_facts": Program(
        cures_facts,
        cures_facts_system.Config,
        {"remedies": ["copies"], "num_pairs": 3, "both_ways": 3, "teachers": 1, "width": 8},
    ),
    "gradient_alignment": Program(
        gradient_alignment,
        gradient_alignment.Config,
        {
            "models": ["mdm"], "steps": 4, "eval_every": 2, "width": 8, "examples": 2,
            "minimal_steps": 4, "minimal_every": 2,
        },
    ),
    "world_a": Program(
        world_a, world_a_system.Config, {"n_pairs": 40, "width": 8, "pretrain_steps": 4}
    ),
    "world_a_bits": Program(
        world_a_bits,
        world_a_bits.Config,
        {"shapes": ["36x4"], "Ks": [1], "n_pairs": [40], "maps": 1, "mlp_width": 8, "epochs": 2},
    ),
    "world_a_mlp": Program(
        world_a_mlp,
        world_a_mlp.Config,
        {"Ks": [1], "n_pairs": 40, "d_hidden": 8, "epochs": 2, "eval_every": 1},
    ),
    "facts": Program(
        facts,
        facts_system.Config,
        {
            "data": ["p2c"], "num_pairs": 4, "both_ways": 4, "epochs": 2, "eval_epochs": 1,
            "gradient_examples": 0, "attention_examples": 0,
        },
    ),
    "adapt_masked": Program(
        adapt_masked, adapt_masked.Config, {"num_pairs": 2, "batch_size": 2}, tiny_causal_model
    ),
    "training_dynamics": Program(training_dynamics, dynamics.Config, {"num_times": 4}),
    "rope_bounds": Program(rope_bounds, rope_bounds.Config, {"num_queries": 8, "num_keys": 8}),
    "measure": Program(measure, measure.Config, {"num_pairs": 4}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """One flag a field."""

    experiment: tuple[Literal[tuple(PROGRAMS)], ...] = flag(tuple(PROGRAMS), "Which to kill.")
    kills: int = flag(20, "How often to kill each.", 0)
    full_disks: int = flag(0, "How often each finds its disk full.", 0)
    seed: int = flag(0, "Of the moments.", kind="seed")


def kill_all(workdir: WorkDir, config: Config, planned: Sequence) -> None:
    """A piece an experiment, and a row of the table."""
    del planned
    pieces = [
        Piece(
            {"experiment": name},
            functools.partial(
                kill_and_compare,
                PROGRAMS[name],
                workdir.path / name,
                config.kills,
                full_disks=config.full_disks,
                seed=config.seed,
            ),
            has_curves=False,
        )
        for name in config.experiment
    ]
    if not work.all_done(pieces, workdir):
        return
    header = ["experiment", "kills", "at a change", "with a checkpoint", "full disks",
              "ends, all identical"]  # fmt: skip
    keys = ("experiment", "kills", "at_changes", "with_checkpoint", "full_disks", "finished")
    table = report.table(header, [[line[key] for key in keys] for line in workdir.results()])
    report.write(workdir.path, f"# Crash test\n\n{table}", {}, printed=table)


def kill_and_compare(
    program: Program, directory: pathlib.Path, kills: int, *, full_disks: int = 0, seed: int
) -> tuple[dict[str, int], dict]:
    """Kills the program and fills its disk, and lets it finish; raises unless all ends are one.

    All lives share a compilation cache: the moments are drawn from the time that a warm run
    takes, and would not reach the end of a cold compilation.

    Returns:
      The result line: kills, how many at a change of the directory, how many came after a
      checkpoint was there, how many lives found a full disk, and how many reached their end.
    """
    path = directory / "run"
    directory.mkdir(parents=True, exist_ok=True)
    program = dataclasses.replace(program, changes=program.changes | program.prepare(directory))
    for _ in ("cold", "warm"):
        shutil.rmtree(path, ignore_errors=True)
        begin = time.monotonic()
        _, words = _live(program, path)
        duration = time.monotonic() - begin
    want, changes = outcome(program, path), int(words.split()[-1])
    shutil.rmtree(path)

    rng = np.random.default_rng(seed)
    line = {"kills": 0, "at_changes": 0, "with_checkpoint": 0, "full_disks": 0, "finished": 0}
    ends = [*(("change", "moment")[n % 2] for n in range(kills)), *["full"] * full_disks, ""]
    while ends:
        if ends[0] == "moment":
            status, words = _live(program, path, timeout=rng.uniform(0, 1.1 * duration))
        else:
            number = int(rng.integers(1, changes + 1)) if ends[0] else 0
            status, words = _live(program, path, number, "full" if ends[0] == "full" else "killed")
        if status == 0:
            line["finished"] += 1
            np.testing.assert_equal(outcome(program, path), want)
            shutil.rmtree(path)
            if ends[0]:
                continue
        elif ends[0] == "full":
            if "Traceback" in words or "No space left" not in words:
                raise RuntimeError(f"a full disk is not told in a line:\n{words}")
            line["full_disks"] += 1
        else:
            line["kills"] += 1
            line["at_changes"] += ends[0] == "change"
            line["with_checkpoint"] += any(path.glob("checkpoints/*/[0-9]*/record.json"))
        ends.pop(0)
    return line, {}


def _live(
    program: Program,
    path: pathlib.Path,
    at_change: int = 0,
    how: Literal["killed", "full"] = "killed",
    timeout: float | None = None,
) -> tuple[int, str]:
    """One life of the program: 0, −9 (killed) or what a full disk ends in, and its last words.

    Raises RuntimeError if it fails otherwise.
    """
    root = pathlib.Path(__file__).parents[2]
    command = ["-m", "experiments.tools.dying", str(path.absolute()), str(at_change), how]
    process = subprocess.Popen(
        [sys.executable, *command, *program.arguments(path)],
        cwd=root,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(path.parent.absolute() / "compiled")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, words = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        _, words = process.communicate()
    finally:
        process.kill()
    if process.returncode not in (0, 2 if how == "full" else -9):
        raise RuntimeError(f"the program failed:\n{words}")
    return process.returncode, words


def outcome(program: Program, path: pathlib.Path) -> dict[str, Any]:
    """Everything that a run leaves, by name, but for time."""
    page, config = program.page, program.config()
    workdir = WorkDir(path, stored_config(path)[0])
    found: dict[str, Any] = {
        "figures": sorted(x.name for x in path.glob("figures/*")),
        "model": {x.name: x.read_bytes() for x in path.glob("model/*")},
    }
    for piece in page.pieces(config) if hasattr(page, "pieces") else ():
        found[full_name(piece, piece.seed)] = _recorded(workdir, piece, piece.seed)
    for run in page.plan(config, path) if hasattr(page, "plan") else ():
        for seed in config.seeds:
            saved = workdir.checkpoints(run, seed, digest=training.digest(run.data(seed)))
            step, state, _ = saved.restore(run.init(seed).replace(frozen=None))
            saved.close()
            leaves = {
                jax.tree_util.keystr(place): np.asarray(_plain(leaf))
                for place, leaf in jax.tree_util.tree_leaves_with_path(state)
            }
            own = _recorded(workdir, run, seed)
            found[full_name(run, seed)] = own | {"step": step, "state": leaves}
    return found


def _recorded(workdir: WorkDir, known: Any, seed: int | None) -> dict[str, Any]:
    line = workdir.line(known, seed)
    curves = workdir.curves(known, seed) if getattr(known, "has_curves", True) else {}
    parts = {"line": line, "curves": curves}
    return {
        name: {key: x for key, x in part.items() if key not in collecting.TIMES}
        for name, part in parts.items()
    }


def _plain(leaf):
    is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


if __name__ == "__main__":
    flags.main("crash_test", Config, PRESETS, kill_all)
