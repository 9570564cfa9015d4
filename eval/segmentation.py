"""Measures what models say of each pixel, beside the dense tower and the cheap ways to as few tokens.

Linear probes of frozen towers, the teacher's and every cheap way's beside them, by one protocol:

    python eval/segmentation.py --model runs/sf49 --num-tokens 16 25 49 100 196 --train camvid-train-000.tar \
        --data camvid-val-000.tar --controls --out camvid.json

Trained models as they are, and maps from class names alone, without training:

    python eval/segmentation.py --model runs/camvid --data camvid-val-000.tar
    python eval/segmentation.py --model runs/sf49 --names voc --data voc-val-000.tar --out voc-names.json

The table has a row a model: image tokens, billions of multiply-adds a photo with its map, milliseconds, mIoU with its 95 % interval over
photos, and how much of the dense tower's it keeps. mIoU is over all pixels of all photos, at each mask's own size; 255 is ignored.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("segmentation")
