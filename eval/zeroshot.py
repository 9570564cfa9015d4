"""Measures SparseFormers beside their dense teacher and beside cheap ways to the same number of tokens.

Photos in class folders, or tar shards with `.cls` members (classification) or captions (retrieval):

    python eval/zeroshot.py --model runs/sf49 --data /data/imagenet/val --controls --out results.json

A data set with ten of ImageNet's classes, labelled 0 to 9 (imagenette), for a teacher with ImageNet's 1000:

    python eval/zeroshot.py --model runs/sf49 --data imagenette-val-000.tar \
        --class-indices 0,217,482,491,497,566,569,571,574,701

One checkpoint at several budgets, and the teacher's cheap alternatives alone:

    python eval/zeroshot.py --model runs/sf49 --num-tokens 16 25 49 100 --data /data/flickr8k-test.tar
    python eval/zeroshot.py --teacher openai/clip-vit-base-patch16 --controls --num-tokens 49 --data /data/photos

The table has a row a model: image tokens after the last block, their mean over the blocks, billions of multiply-adds a
photo, accuracy or recalls, and how near the model stays to the teacher on the same views (equal first choices, mean
cosine). A ViT-Ti takes about 25 ms a photo on one CPU core; at 112 of its 224 pixels, untrained, it keeps less than
half of its accuracy.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("zeroshot")
