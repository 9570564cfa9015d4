"""Puts a SparseFormer into a LLaVA: the vision tower is replaced, projector and language model stay as they are.

    python scripts/swap_llava_tower.py --host llava-hf/llava-1.5-7b-hf --tower runs/sf49 --out runs/llava-49
    python scripts/swap_llava_tower.py --host llava-hf/llava-1.5-7b-hf --tower reduce:average --num-tokens 49 --out runs/average-49
    python scripts/swap_llava_tower.py --undo --host runs/llava-49 --out runs/llava-dense

The second line keeps the LLaVA's own tower and takes 49 tokens from it, one of the cheap alternatives that a sparse tower
is to be compared with: resolution, larger-patch, stride, average, cls-attention, diversity, random, merging,
merging-decreasing, merging-gradual.

Without arguments it swaps the LLaVA that is shipped with the package.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("swap")
