"""ImageNet-1K, AlexNet: the paper's network of large linear layers; 53.7 % fewer MACs there.

Command: `make imagenet-alexnet`, on several GPUs `torchrun --nproc-per-node N -m benchmarks run imagenet-alexnet
--profile paper`. It needs ImageNet-1K (`$OICSR_DATA/imagenet/train` and `val`). Profile `quick` is a few dozen images:
it shows that the pipeline works. Profile `paper`: torchvision's recipe for AlexNet (90 epochs, batch 256, learning rate
0.01 divided by ten every 30 epochs, weight decay 1e-4); regularised and fine-tuning epochs are our choice, as the
paper's are not known (PAPER.md). Network Slimming is left out: there is no BatchNorm.
"""

from dataclasses import replace

from benchmarks.config import Experiment, Phase, Profile
from benchmarks.experiments.shared_profiles import IMAGENET_QUICK, METHODS

METHODS_WITHOUT_NORM = tuple(name for name in METHODS if name != "slimming")

EXPERIMENT = Experiment(
    name="imagenet-alexnet",
    title="ImageNet-1K, AlexNet",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="imagenet-alexnet",
    dataset="imagenet",
    profiles={
        "quick": replace(IMAGENET_QUICK, methods=METHODS_WITHOUT_NORM),
        "paper": Profile(
            dense=Phase(epochs=90, learning_rate=0.01, schedule="step", milestones=(1 / 3, 2 / 3), weight_decay=1e-4),
            regularized=Phase(epochs=45, learning_rate=0.003, weight_decay=1e-4),
            finetune=Phase(epochs=45, learning_rate=0.001, weight_decay=1e-4),
            methods=METHODS_WITHOUT_NORM,
            macs_kept=(0.463,),
            seeds=(0, 1, 2),
            batch_size=256,
            precision="bfloat16",
        ),
    },
)
