"""Trains a segmentation model from a SparseFormer, or from a dense tower, and photos with masks.

    python scripts/train_segmentation.py --model runs/sf49 --train camvid-train-000.tar --val camvid-val-000.tar --out runs/camvid

A linear probe: the tower is frozen, batch norm and a 1 x 1 classifier learn. --training.tune lora or all tunes the tower too. Masks are
pictures of class indices, 255 ignored: KEY.png beside KEY.jpg in shards, masks/ beside images/ in a folder, a second column of images
in a Hugging Face dataset on disk. Classes are counted where --classes names none. An interrupted run continues by the same
command with --resume.

The result opens with transformers: `pipeline("image-segmentation", model="runs/camvid")` after `import sfvlm`.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("train-segmentation")
