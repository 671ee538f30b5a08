"""ImageNet-1K, ResNet-50: the paper's headline, 37.3, 44.4 and 50.0 % fewer MACs.

Command: `make imagenet-resnet50`, on several GPUs `torchrun --nproc-per-node N -m benchmarks run imagenet-resnet50
--profile paper`. It needs ImageNet-1K (`$OICSR_DATA/imagenet/train` and `val`). Profile `quick` is a few dozen images:
it shows that the pipeline works. Profile `paper`: torchvision's recipe for ResNet-50 (90 epochs, batch 256, learning
rate 0.1 divided by ten every 30 epochs, weight decay 1e-4); regularised and fine-tuning epochs are our choice, as the
paper's are not known. The two inner widths of each bottleneck are pruned, at most half of each (PAPER.md).
"""

from dataclasses import replace

from benchmarks.config import Experiment, Phase, Profile
from benchmarks.experiments.shared_profiles import IMAGENET_QUICK, METHODS

EXPERIMENT = Experiment(
    name="imagenet-resnet50",
    title="ImageNet-1K, ResNet-50",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="imagenet-resnet50",
    dataset="imagenet",
    profiles={
        "quick": replace(IMAGENET_QUICK, max_removed=0.5),
        "paper": Profile(
            dense=Phase(epochs=90, learning_rate=0.1, schedule="step", milestones=(1 / 3, 2 / 3), weight_decay=1e-4),
            regularized=Phase(epochs=45, learning_rate=0.03, weight_decay=1e-4),
            finetune=Phase(epochs=45, learning_rate=0.01, weight_decay=1e-4),
            methods=METHODS,
            macs_kept=(0.627, 0.556, 0.5),
            seeds=(0, 1, 2),
            batch_size=256,
            max_removed=0.5,
            precision="bfloat16",
        ),
    },
)
