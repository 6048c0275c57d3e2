"""Fine-tunes pre-trained weights on a labelled dataset.

    python -m launch.finetune --config=configs/finetune/depth.py --config.init=WEIGHTS --config.data.train=DATASET \\
        --workdir=DIR

WEIGHTS is a workdir of launch.pretrain, a weights folder, or a .pth or .safetensors file. Writes DIR as launch.pretrain
does; interrupted, the same command resumes; on several hosts it is started in the same way.
"""

from launch.train import main
from mimic_jax import command

if __name__ == "__main__":
    command.run(main)
