"""What is to be run at the published sizes, in the order in which it is wanted: see `queue`.

Minutes are expected ones, compiling and evaluation included, of a job that has the accelerator to
itself. Measured: World A in bfloat16 on an H200, 3.3 minutes a job (145 seconds of them training),
and Table 2's MDM, 40 to 68 s a length on an H100. Two jobs beside each other took 6.4 minutes each.
Of an H100 too: SmolLM2 adapted for 1200 steps, 3 minutes, and `facts` on it, 3 minutes a model. The
others are operations at a tenth of a TF32 H100's rate; those of benchmarks are guesses.
"""

import dataclasses
import shlex


@dataclasses.dataclass(frozen=True)
class Job:
    """One command, whose results are a folder of docs/results of its own.

    Attributes:
      name: of the folder.
      command: the experiment and its flags, without a work directory.
      minutes: expected on one H100.
      needs: files and folders that must be there. Here and in the command `{workdirs}` is the
        folder of the jobs' work directories.
      leaves: what another job needs and no results hold, such as weights. Where it is gone and
        wanted, the job is not done.
    """

    name: str
    command: str
    minutes: float
    needs: tuple[str, ...] = ()
    leaves: str = ""

    def within(self, workdirs: str) -> "Job":
        """The job, where its work directory is in `workdirs`."""
        command = self.command.format(workdirs=shlex.quote(workdirs))
        leaves, *needs = (x.format(workdirs=workdirs) for x in (self.leaves, *self.needs))
        return dataclasses.replace(self, command=command, needs=tuple(needs), leaves=leaves)


SCRATCH = "world_a --preset=paper --modes=scratch"
WORLD_A = f"{SCRATCH} --dtype=bfloat16 --eval_every=1 --checkpoint_every=10"
BEGINNING = f"{SCRATCH} --Ks=5 --directions=inverse --n_pairs=12800 --epochs=1 --seeds=0,1,2"
LONG = f"{SCRATCH} --dtype=bfloat16 --Ks=5 --epochs=50 --eval_every=2"
FORWARD, INVERSE = "--directions=forward", "--directions=inverse"
TABLE_2 = "toy_reversal --preset=paper --generations=25 --eval_every=500"
SEVEN = "--seeds=3,4,5,6,7,8,9"
MASKED, PUBLIC = "{workdirs}/smollm2_masked/model", "data/reversal_curse"
ADAPT = (
    "adapt_masked --model_id=smollm2 --steps=2400 --save_every=600 --batch_size=64 --length=128 "
    "--learning_rate=3e-4 --warmup_steps=50 --dtype=bfloat16 --num_pairs=2000 --both_ways "
    "--fact_repeats=4"
)
ASK = (
    f"facts --preset=paper --model_id={MASKED} --models=mdm --data=p2c --data_path={PUBLIC} "
    "--max_new=0 --batch_size=32 --epochs=300 --eval_epochs=75 --learning_rate=1e-3 "
    "--warmup_steps=20 --gradient_examples=16 --attention_examples=12"
)
LLAMA_8B = (
    "benchmarks.cross_matrix --layers=32 --width=4096 --heads=32 --kv_heads=8 --mlp_width=14336 "
    "--vocab_size=128256 --scan --dtype=bfloat16 --rows=16 --columns=16 --length=16 "
    "--ways=factored --memory_limit=16384 --rounds=1"
)


def shards(count: int, name: str, command: str, minutes: float) -> list[Job]:
    """A job a shard."""
    return [Job(f"{name}_{i}", f"{command} --shard={i}/{count}", minutes) for i in range(count)]


JOBS = (
    # Are the first 200 losses in bfloat16 those in float32? See `same_losses`.
    *(
        Job(f"world_a_gpt2_200_steps_{dtype}", f"{BEGINNING} --dtype={dtype}", 3)
        for dtype in ("float32", "bfloat16")
    ),
    # 2511.19997, Table 1: the gap of GPT-2 small from scratch, 1.16 nats at K = 5.
    Job("world_a_gpt2_K1_forward", f"{WORLD_A} --Ks=1 {FORWARD}", 3.5),
    Job("world_a_gpt2_K5_forward", f"{WORLD_A} --Ks=5 {FORWARD}", 3.5),
    Job("world_a_gpt2_K5_inverse", f"{WORLD_A} --Ks=5 {INVERSE}", 3.5),
    Job("world_a_gpt2_K1_inverse", f"{WORLD_A} --Ks=1 {INVERSE}", 3.5),
    Job("world_a_gpt2_K8_forward", f"{WORLD_A} --Ks=8 {FORWARD}", 3.5),
    Job("world_a_gpt2_K8_inverse", f"{WORLD_A} --Ks=8 {INVERSE}", 3.5),
    # The same to convergence, as far as 8 minutes go: does the sign of the gap turn?
    *(
        Job(f"world_a_gpt2_K5_{way}_50_epochs", f"{LONG} --checkpoint_every=10 {flag}", 7.5)
        for way, flag in (("inverse", INVERSE), ("forward", FORWARD))
    ),
    # Seeds in one program share its 1,461 kernels a step, which are small.
    *(
        Job(f"world_a_gpt2_K5_{way}_seeds_1_2", f"{WORLD_A} --Ks=5 {flag} --seeds=1,2", 6)
        for way, flag in (("forward", FORWARD), ("inverse", INVERSE))
    ),
    *(
        Job(
            f"world_a_gpt2_medium_K5_{way}",
            f"{SCRATCH} --model_id=gpt2-medium --dtype=bfloat16 --Ks=5 {flag} --checkpoint_every=4",
            7.5,
        )
        for way, flag in (("forward", FORWARD), ("inverse", INVERSE))
    ),
    # 2602.02133, Table 2: what docs/results/toy_reversal lacks at step 3000; then more seeds.
    Job("table_2_mdm_L40", f"{TABLE_2} --models=mdm --lengths=40", 2),
    Job("table_2_arm", f"{TABLE_2} --models=arm", 5),
    *(
        Job(f"table_2_mdm_L{length}_seeds", f"{TABLE_2} --models=mdm --lengths={length} {SEVEN}", 3)
        for length in (10, 30, 20, 40)
    ),
    # 2405.04669 at 24 layers × 768: half of the 3000 epochs.
    *(
        Job(f"relations_24_{task}", f"relations --preset=paper --task={task} --num_epochs=1500", 7)
        for task in ("reversal", "chain", "icl")
    ),
    *shards(12, "causes_paper", "causes --preset=paper", 6),
    *shards(3, "cures_paper", "cures --preset=paper", 6),
    *shards(4, "closure_128", "closure --preset=paper --widths=128", 6),
    # Per-example gradients of LLaMA-3.1 8B's shape; then memory in a process that compiles nothing.
    Job("cross_matrix_8b", LLAMA_8B, 5),
    Job("benchmarks_facts", "benchmarks.facts --scan_layers", 4),
    Job("benchmarks_alignment", "benchmarks.alignment --model=transformer", 3),
    # 2602.02133's §6 on real weights: masked for twice the steps on file, names noised as wholes.
    Job("smollm2_masked", ADAPT, 7, needs=("smollm2",), leaves=MASKED),
    Job("smollm2_masked_p2c", ASK, 4, needs=(MASKED, PUBLIC)),
    Job("smollm2_masked_p2c_names", f"{ASK} --noising=names", 4, needs=(MASKED, PUBLIC)),
)  # fmt: skip
