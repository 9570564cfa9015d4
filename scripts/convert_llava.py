"""Converts an original llava checkpoint (haotian-liu/LLaVA) into transformers' layout, so that its tower can be swapped.

    python scripts/convert_llava.py --checkpoint liuhaotian/llava-v1.5-7b --out runs/llava-1.5-7b
    python scripts/convert_llava.py --checkpoint my-llava --vision-tower clip-l14-336 --out runs/my-llava
    python scripts/convert_llava.py --checkpoint llava-v1.6-mistral-7b --chat-template mistral-instruct --out runs/mistral

Weights go from file to file as they are stored; no more than one file of 5 GB is held in memory. LoRA weights, projectors
alone and deltas are refused with what to do first.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("convert")
