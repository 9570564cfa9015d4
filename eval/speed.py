"""Measures what a LLaVA or an encoder costs beside its sparse version: time, tokens, KV cache, multiply-adds, energy.

Hosts, part by part (photos to tensors, encode, prefill, first token, each further token), the first one dense:

    python eval/speed.py --host runs/llava runs/llava-49 --photos photos --new-tokens 32 --batch-sizes 1 8 --out speed.json

The sizes of LLaVA-1.5-7B with random weights, on a GPU of 24 GB or more (no checkpoint is read):

    python eval/speed.py --shape 7b --batch-sizes 1 8 --out speed-7b.json

Encoders alone, with the floor that this machine's products and memory set, and the share of it reached. CLIP ViT-L/14-336
against the preset sparseformer-clip-large, random weights, on two cores of a 2.5 GHz Xeon with one thread in five minutes:

    python eval/speed.py --threads 1

Any others, the first one dense; a dense one, its students and every cheap alternative; and faster ways to run each:

    python eval/speed.py --encoder clip-l14-336 clip-l14-336@49 clip-l14-336/inherited@49 clip-l14-336/reduce:average@49
    python eval/speed.py --suite clip-l14-336 --batch-sizes 1 8 64 --out suite.json
    python eval/speed.py --encoder clip-l14-336 clip-l14-336@49 --accelerate packed int8

How cost grows with tokens, photos and their size, in numbers and as a plot; and quality over latency, from results files:

    python eval/speed.py --scaling clip-l14-336@49 --out scaling.json --plot scaling.png
    python eval/speed.py --results speed.json zeroshot.json vqa.json --plot quality.png

How fast a student is bootstrapped, beside what its products and its photos allow:

    python eval/speed.py --bootstrap clip-l14-336@49 --photos photos --batch-sizes 256 --workers 16 --accelerate compile

All sides run in one process, in turns, on inputs that change from turn to turn, after a warm-up, at the same dtype and
thread count; the device has finished before a clock is read. The medians and their ratios are what to read: the times
themselves belong to the machine, which the JSON file names. More: docs/speed.md.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("speed")
