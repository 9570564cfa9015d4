"""Bootstraps a SparseFormer from a pretrained vision transformer and unlabelled photos.

    python scripts/bootstrap_clip.py --teacher openai/clip-vit-large-patch14-336 --photos /data/photos --out runs/sf49 --steps 20000

For a LLaVA: the tower learns what its projector and language model make of the tokens, and from what they answer.

    python scripts/bootstrap_clip.py --host llava-hf/llava-1.5-7b-hf --photos /data/photos --out runs/tower-49 --steps 20000

Without arguments: the shipped CLIP, rendered scenes, 200 steps; about five minutes on two cores, and a cosine of 0.96 with the teacher.
Continue an interrupted run by the same command with --resume. Several GPUs: `torchrun --nproc_per_node 8 scripts/...`.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("bootstrap")
