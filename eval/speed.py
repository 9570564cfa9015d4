"""Measures what a LLaVA costs beside its sparse version: time, image tokens, KV cache, parameters, multiply-adds.

Hosts, part by part (photos to tensors, encode, prefill, first token, each further token), the first one dense:

    python eval/speed.py --host runs/llava runs/llava-49 --photos photos --new-tokens 32 --batch-sizes 1 8 --out speed.json

The sizes of LLaVA-1.5-7B with random weights, on a GPU of 24 GB or more (no checkpoint is read):

    python eval/speed.py --shape 7b --batch-sizes 1 8 --out speed-7b.json

Encoders alone, CLIP ViT-L/14-336 against the preset sparseformer-clip-large, random weights; on two cores of a 2.5 GHz
Xeon with one thread it takes about five minutes:

    python eval/speed.py --threads 1

All sides run in one process, in turns, on inputs that change from turn to turn, after a warm-up, at the same dtype and
thread count; the device has finished before a clock is read. The medians and their ratios are what to read: the times
themselves belong to the machine, which the JSON file names.
"""

from sfvlm.cli import run
from sfvlm.commands.speed import SpeedCommand, speed_command

if __name__ == "__main__":
    run(speed_command, SpeedCommand)
