"""Teaches a frozen SparseFormer to make the dense map of its teacher, from photos without labels: for segmentation.

    python scripts/train_guide.py --model runs/sf49 --photos /data/photos

Writes `guide/` into the model's folder. The shipped one, with rendered scenes: `--model sparseformer-tiny-49 --out runs/guide`.
Continue an interrupted run by the same command with --resume.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("train-guide")
