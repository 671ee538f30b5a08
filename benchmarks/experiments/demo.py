"""The demo: the complete pipeline on handwritten digits, in about a minute on two cores, without a download.

Command: `make demo`. Claim: before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than Group Lasso on the
out-channels alone, L1-norm filters, or no regulariser. A network this small on digits this easy shows how the
comparison works; it is not evidence about image recognition.
"""

from benchmarks.config import Experiment, Phase, Profile

# a penalty that grows at every step needs more in proportion to the square of the number of steps
GROWING = (0.0025, 0.005, 0.01, 0.02, 0.04)

METHODS = ("oicsr-gl", "gl-out", "gl-separate", "l1", "none", "random")

EXPERIMENT = Experiment(
    name="demo",
    title="Digits, small ResNet",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="digits-resnet",
    dataset="digits",
    profiles={
        "quick": Profile(
            dense=Phase(epochs=6, learning_rate=0.1),
            regularized=Phase(epochs=12, learning_rate=0.05),
            finetune=Phase(epochs=3, learning_rate=0.01),
            methods=METHODS,
            macs_kept=(0.5, 0.3),
            seeds=(0,),
            batch_size=64,
            grid_scale=40.0,
            grids={"greg1": GROWING},
        ),
    },
)
