"""Measures hosts (LLaVA and its kin) on visual question answering, each beside the first on the same questions.

Without any file, on rendered scenes that nobody trained on (500 scenes, about 3,200 short questions):

    python eval/vqa.py --benchmark scenes --model runs/llava runs/llava-49 --out results.json

A host beside itself with other towers, which take its tower's place in memory:

    python eval/vqa.py --benchmark scenes --model runs/llava --tower runs/sf49 runs/sf49@36 reduce:average@49

From photos and what their shards say of them:

    python eval/vqa.py --benchmark captions --photos flickr8k-test-000.tar --model ...
    python eval/vqa.py --benchmark pope-like --split test --photos coco-boxes-000.tar --model ...
    python eval/vqa.py --benchmark pope-captions --photos flickr8k-test-000.tar --model ...
    python eval/vqa.py --benchmark daquar --split test --photos daquar-train-000.tar --model ...

With LLaVA's question files, or the benchmarks' own:

    python eval/vqa.py --benchmark pope --questions coco_pope_random.json coco_pope_popular.json \
        coco_pope_adversarial.json --photos val2014 --model llava-hf/llava-1.5-7b-hf runs/llava-7b-49 --out pope.json
    python eval/vqa.py --benchmark vqav2 --questions v2_OpenEnded_mscoco_val2014_questions.json \
        --annotations v2_mscoco_val2014_annotations.json --photos val2014 --model ...
    python eval/vqa.py --benchmark mmbench --questions mmbench_dev_20230712.tsv --model ...

Several processes, then one that joins what they answered; an interrupted run continues from its answers as well:

    python eval/vqa.py ... --out results.json --shard 1/2 & python eval/vqa.py ... --out results.json --shard 2/2; wait
    python eval/vqa.py ... --out results.json

Answers that another program wrote: LLaVA's lines, results of VQA, GQA or VizWiz, samples of lmms-eval, tables of VLMEvalKit:

    python eval/vqa.py --benchmark textvqa --questions llava_textvqa_val_v051_ocr.jsonl \
        --annotations TextVQA_0.5.1_val.json --answers llava-v1.5-7b.jsonl

Several benchmarks together, what is retained on average and who is ahead:

    sfvlm retained vqa-*.json

The table has a row a model: image tokens, the benchmark's number with its 95 % interval (photos are resampled), the
difference from the first model, and the share of its score that is retained, both with paired intervals. The results
file has all numbers, by category too, and the rule each was computed by.
"""

from sfvlm.cli import command

if __name__ == "__main__":
    command("vqa")
