"""Measures how near a sparse tower keeps a LLaVA to what it says with its own dense one: any photos, no labels.

The shipped LLaVA with the shipped tower, on rendered scenes that neither was trained on:

    python eval/fidelity.py

Your own, at several budgets, beside what the dense tower's own tokens would do if few of them were handed over:

    python eval/fidelity.py --host runs/llava --tower runs/sf49@16 runs/sf49 runs/sf49@100 reduce:stride@49 \
        --photos photos --limit 500 --out fidelity.json

The host is asked about each photo with its dense tower, and its answers are read again with each other tower. The table
has, with 95 % intervals (photos are resampled), the divergence of the next-word distributions from the dense ones in nats a
word (0: the same host), the share of words that come first with either, and the difference from the first tower, photo by
photo. The photos need no right answers; how good the host itself is, eval/vqa.py measures. Photos are read as the
host's processor shows them, padded or cropped; of a host that cuts them into tiles, the overview alone.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("fidelity")
