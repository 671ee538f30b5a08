"""ImageNet-1K, MobileNetV2: a network that is small by design; not in the paper.

Command: `make imagenet-mobilenetv2`, on several GPUs `torchrun --nproc-per-node N -m benchmarks run imagenet-
mobilenetv2 --profile paper`. It needs ImageNet-1K (`$OICSR_DATA/imagenet/train` and `val`). Profile `quick` is a few
dozen images: it shows that the pipeline works. Profile `paper`: the recipe that PyTorch reproductions of MobileNetV2
use (150 epochs on a cosine from 0.05, batch 256, weight decay 4e-5); regularised and fine-tuning epochs are our choice.
"""

from benchmarks.config import Experiment, Phase, Profile
from benchmarks.experiments.shared_profiles import IMAGENET_QUICK, METHODS

EXPERIMENT = Experiment(
    name="imagenet-mobilenetv2",
    title="ImageNet-1K, MobileNetV2",
    claim="Before fine-tuning, OICSR-GL keeps more accuracy at equal MACs than regularisers that look at one layer.",
    model="imagenet-mobilenetv2",
    dataset="imagenet",
    profiles={
        "quick": IMAGENET_QUICK,
        "paper": Profile(
            dense=Phase(epochs=150, learning_rate=0.05, weight_decay=4e-5),
            regularized=Phase(epochs=60, learning_rate=0.02, weight_decay=4e-5),
            finetune=Phase(epochs=60, learning_rate=0.01, weight_decay=4e-5),
            methods=METHODS,
            macs_kept=(0.7, 0.5),
            seeds=(0, 1, 2),
            batch_size=256,
            precision="bfloat16",
        ),
    },
)
