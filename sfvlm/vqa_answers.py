"""Answer files in LLaVA's format: one line an answer, written as it comes, continued where it stopped.

A line is {question_id, prompt, text, answer_id, model_id, metadata}. `metadata` names the run it belongs to, so that
answers of another model or another question file are never counted; a file that was cut off inside its last line loses
that line alone. Several processes each answer one shard into a file of their own; `merge_shards` checks and joins them.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .files import write_text
from .vqa_questions import Question

Answers = dict[tuple[str, str], str]  # question key -> text


@dataclass(frozen=True)
class Run:
    """What must be equal for answers to belong together."""

    model_id: str  # what the host is called
    fingerprint: str  # of its weights
    max_new_tokens: int
    settings_fingerprint: str = ""  # of what else its answers depend on


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the questions, counted from 1: every count-th question."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "2/8".

        Raises:
            ValueError: It is written otherwise, or there is no such shard.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"--shard is {text!r}; it must be one of 1/N ... N/N.")
        return cls(int(found[1]), int(found[2]))

    def of(self, questions: Sequence[Question]) -> list[Question]:
        return list(questions[self.number - 1 :: self.count])

    def path(self, whole: Path) -> Path:
        """Where this shard's answers go, beside the file of all."""
        if self.count == 1:
            return whole
        return whole.with_name(f"{whole.stem}.{self.number}-of-{self.count}{whole.suffix}")


class AnswerFile:
    """Answers of one run, appended and flushed one batch at a time.

    Args:
        path: The file; created with the first answer.
        run: Whose answers these are.
        questions: What is asked; a file with answers to anything else is refused.

    Raises:
        ValueError: The file is damaged or belongs to another run.
    """

    def __init__(self, path: Path, run: Run, questions: Sequence[Question]) -> None:
        self.path, self.run = path, run
        self.answers: Answers = {}
        rows, whole = _rows(path)
        known = {item.key: item for item in questions}
        for row in rows:
            key = str(row["question_id"]), row["prompt"]
            other = _run_of(row)
            if key not in known or other != run or key in self.answers:
                raise ValueError(_other_run(path, row, other, run, key in self.answers, key in known))
            self.answers[key] = row["text"]
        if whole is not None and path.stat().st_size > whole:
            os.truncate(path, whole)
        elif whole and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

    def append(self, questions: Sequence[Question], texts: Sequence[str], problems: Sequence[str | None]) -> None:
        """Writes answers; a problem is why a photo could not be shown."""
        lines = []
        for item, text, problem in zip(questions, texts, problems, strict=True):
            self.answers[item.key] = text
            facts = asdict(self.run) | ({} if problem is None else {"problem": problem})
            facts.pop("model_id")
            row = {
                "question_id": item.question_id,
                "prompt": item.text,
                "text": text,
                "answer_id": _answer_id(self.run, item),
                "model_id": self.run.model_id,
                "metadata": facts,
            }
            lines.append(json.dumps(row | item.extra, ensure_ascii=False) + "\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()


def merge_shards(path: Path, questions: Sequence[Question]) -> bool:
    """Joins the shards beside `path` in the order of the questions; False if there are none.

    Raises:
        ValueError: A shard is missing or unfinished, two belong to different runs, or both answer a question.
    """
    found = {
        Shard(int(name[1]), int(name[2])): file
        for file in sorted(path.parent.glob(f"{path.stem}.*-of-*{path.suffix}"))
        if (name := re.fullmatch(rf"{re.escape(path.stem)}\.(\d+)-of-(\d+){re.escape(path.suffix)}", file.name))
    }
    if not found:
        return False
    counts = {shard.count for shard in found}
    if len(counts) > 1:
        raise ValueError(f"{path.parent} has shards of {path.stem} in {' and '.join(map(str, sorted(counts)))} parts.")
    count = counts.pop()
    parts = [Shard(number, count) for number in range(1, count + 1)]
    missing = [str(part.number) for part in parts if part not in found and part.of(questions)]
    if missing:
        raise ValueError(f"{len(found)} of {count} shards of {path} are there; {', '.join(missing)} missing.")
    lines: dict[tuple[str, str], str] = {}
    run: Run | None = None
    for shard, file in found.items():
        rows, _ = _rows(file)
        run = run or (_run_of(rows[0]) if rows else None)
        part = shard.of(questions)
        if rows and run is not None:
            AnswerFile(file, run, part)
        if len(rows) < len(part):
            raise ValueError(f"The shard {file} has {len(rows)} of {len(part)} answers: finish it first.")
        for row in rows:
            lines[str(row["question_id"]), row["prompt"]] = json.dumps(row, ensure_ascii=False) + "\n"
    write_text(path, "".join(lines[item.key] for item in questions))
    for file in found.values():
        file.unlink()
    return True


def read_answers(path: Path, questions: Sequence[Question]) -> list[str]:
    """The texts of an answer file that any program wrote, in the order of the questions.

    Prompts must be those of the questions, but for "<image>" and an instruction at the end that one of the two lacks.

    Raises:
        ValueError: The file is damaged, or answers other questions.
    """
    if not path.is_file():
        raise ValueError(f"The file {path} does not exist.")
    rows, _ = _rows(path, needed=("question_id", "text"))
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_id.setdefault(str(row["question_id"]), []).append(row)
    used: set[int] = set()
    texts, missing = [], []
    for item in questions:
        rest = [row for row in by_id.get(str(item.question_id), []) if id(row) not in used]
        same = [row for row in rest if _same_prompt(str(row.get("prompt", "")), item.text)]
        if not rest:
            missing.append(item)
        elif not same:
            raise ValueError(
                f"{path} is of another run: it answers {str(rest[0]['prompt'])[:80]!r} as question {item.question_id}, "
                f"which is {item.text[:80]!r}."
            )
        else:
            used.add(id(same[0]))
            texts.append(str(same[0]["text"]))
    if missing:
        raise ValueError(
            f"{path} answers {len(questions) - len(missing)} of {len(questions)} questions; the first that is missing "
            f"is {missing[0].question_id}."
        )
    if len(rows) > len(used):
        other = next(row for row in rows if id(row) not in used)
        raise ValueError(
            f"{path} has {len(rows)} answers to {len(questions)} questions: the question {other['question_id']} is "
            "answered twice, or is none of them."
        )
    return texts


def _rows(
    path: Path, needed: Sequence[str] = ("question_id", "prompt", "text")
) -> tuple[list[dict[str, Any]], int | None]:
    """Whole lines and the bytes they take; without a file, none. A last line that was cut off is left out."""
    if not path.is_file():
        return [], None
    data = path.read_bytes()
    rows, end = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or any(name not in row for name in needed):
            if end + len(line) == len(data) and not line.endswith(b"\n"):
                break
            raise ValueError(f"Line {number} of {path} is not an answer: remove it, or the file.")
        rows.append(row)
        end += len(line)
    return rows, end


def _run_of(row: dict[str, Any]) -> Run:
    facts = row.get("metadata") or {}
    return Run(
        str(row.get("model_id", "")),
        str(facts.get("fingerprint", "")),
        int(facts.get("max_new_tokens", 0)),
        str(facts.get("settings_fingerprint", "")),
    )


def _other_run(path: Path, row: dict[str, Any], other: Run, run: Run, is_twice: bool, is_known: bool) -> str:
    if other != run:
        name, ours = next((name, value) for name, value in asdict(run).items() if getattr(other, name) != value)
        what = f"its {name} is {getattr(other, name)!r}, this run's {ours!r}"
    elif is_twice:
        what = f"it answers question {row['question_id']} twice"
    else:
        what = f"question {row['question_id']} is not asked here, or in other words"
    return f"The answers in {path} are of another run ({what}): remove the file, or give another --out."


def _answer_id(run: Run, item: Question) -> str:
    """The same for the same answer, whichever process wrote it."""
    return hashlib.sha256(f"{run}{item.key}".encode()).hexdigest()[:22]


def _same_prompt(theirs: str, ours: str) -> bool:
    plain = ["".join(text.replace("<image>", "").split()) for text in (theirs, ours)]
    return plain[0].startswith(plain[1]) or plain[1].startswith(plain[0])
