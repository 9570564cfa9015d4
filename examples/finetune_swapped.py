"""Fine-tunes a LLaVA with few tokens on questions and answers about photos: TRL's SFTTrainer, LoRA by PEFT.

    python scripts/swap_llava_tower.py --host llava-tiny --tower sparseformer-tiny-49 --out runs/llava-49
    python examples/finetune_swapped.py --model runs/llava-49 --out runs/llava-49-tuned

The language model gets LoRA updates, which are merged at the end; tower and projector stay as they are, bit for bit. With --train-tower
the tower is trained too, in full. The result is a folder like the one it came from: it opens, answers and is served in the same way.
Here the photos are rendered scenes with questions; take your own from `rows`. Needs: pip install trl peft
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

import sfvlm  # noqa: F401  transformers knows the tower from here on
from sfvlm.photos.scenes import render_scene

TURN = [{"role": Value("string"), "content": Value("string")}]


def rows(count: int) -> list[dict[str, Any]]:
    """Photos, each with a question and its answer: put your own here."""
    found = []
    for number in range(count):
        scene = render_scene(3, number)
        asked = scene.questions[0]
        found.append(
            {
                "images": [scene.image],
                "prompt": [{"role": "user", "content": asked.question}],
                "completion": [{"role": "assistant", "content": asked.answer}],
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="a swapped LLaVA's folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--train-tower", action="store_true", help="train the tower too")
    flags = parser.parse_args()
    torch.manual_seed(0)

    model = AutoModelForImageTextToText.from_pretrained(flags.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(flags.model)
    model.requires_grad_(False)
    names = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=names, modules_to_save=["vision_tower"] if flags.train_tower else None
    )
    settings = SFTConfig(
        output_dir=str(flags.out.with_name(f"{flags.out.name}-checkpoints")),
        max_steps=flags.steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        max_length=None,  # cutting a prompt would cut the photo's places
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
    )
    features = Features({"images": List(Image()), "prompt": TURN, "completion": TURN})
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(rows(flags.photos), features=features),
        processing_class=processor,
        peft_config=lora,
    )
    trainer.train()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(flags.out)
    processor.save_pretrained(flags.out)
    print(f"Wrote {flags.out}.")


if __name__ == "__main__":
    main()
