"""Bootstraps a SparseFormer from a pretrained vision transformer and unlabelled photos.

    python scripts/bootstrap_clip.py --teacher openai/clip-vit-large-patch14-336 --photos /data/photos --out runs/sf49

Continue an interrupted run by the same command with --resume. Several GPUs: `torchrun --nproc_per_node 8 scripts/...`.
"""

from sfvlm.cli import run
from sfvlm.commands.bootstrap import BootstrapCommand, bootstrap_command

if __name__ == "__main__":
    run(bootstrap_command, BootstrapCommand)
