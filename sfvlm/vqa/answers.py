"""Answer files in LLaVA's format: one line an answer, written as it comes, continued where it stopped.

A line is {question_id, prompt, text, answer_id, model_id, metadata}. `metadata` names the run and the photo it belongs to,
so that answers of another model, to another question file or about other photos are never counted; a file that was cut off
inside its last line loses that line alone. Several processes each answer one shard into a file of their own; `merge_shards`
checks and joins them.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..photos.names import closest, photo_name
from ..util.files import append_text, make_folder, write_text
from ..util.results import short_names
from .other_answers import Said, plain, read_rows, read_said
from .questions import Question

Answers = dict[tuple[str, str], str]  # question key -> text
NEEDED = ("question_id", "prompt", "text")  # what rows of ours cannot do without


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

    Answers that had to do without their photo are dropped when the file is opened: it may have been repaired.

    Args:
        path: The file; created with the first answer.
        run: Whose answers these are.
        questions: What is asked; a file with answers to anything else is refused.

    Attributes:
        answers: Those that are there.
        photos: Question key -> fingerprint of the photo it was answered about.

    Raises:
        ValueError: The file is damaged or belongs to another run.
    """

    def __init__(self, path: Path, run: Run, questions: Sequence[Question]) -> None:
        self.path, self.run = path, run
        rows, whole = _rows(path)
        _check_rows(path, rows, run, questions)
        kept = [row for row in rows if "problem" not in _facts(row)]
        self.answers: Answers = {_key(row): str(row["text"]) for row in kept}
        self.photos = {_key(row): str(_facts(row).get("photo", "")) for row in kept}
        if len(kept) < len(rows):
            write_text(path, "".join(map(_line, kept)))
        elif whole is not None and path.stat().st_size > whole:
            os.truncate(path, whole)
        elif whole and not path.read_bytes().endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")

    def append(self, questions: Sequence[Question], texts: Sequence[str], facts: Sequence[dict[str, str]]) -> None:
        """Writes answers; facts are the photo's fingerprint, or the problem for which it could not be shown."""
        lines = []
        for item, text, its in zip(questions, texts, facts, strict=True):
            self.answers[item.key] = text
            metadata = asdict(self.run) | its
            metadata.pop("model_id")
            row = {
                "question_id": item.question_id,
                "prompt": item.text,
                "text": text,
                "answer_id": _answer_id(self.run, item),
                "model_id": self.run.model_id,
                "metadata": metadata,
            }
            lines.append(_line(row | item.extra))
        make_folder(self.path.parent)
        append_text(self.path, "".join(lines))


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
    if _holds_all(path, questions, list(found.values())):  # the process that joined them was stopped before the end
        for file in found.values():
            file.unlink()
        return True
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
        if run is not None:
            _check_rows(file, rows, run, part)
        if len(rows) < len(part):
            raise ValueError(f"The shard {file} has {len(rows)} of {len(part)} answers: finish it first.")
        for row in rows:
            lines[_key(row)] = _line(row)
    write_text(path, "".join(lines[item.key] for item in questions))
    for file in found.values():
        file.unlink()
    return True


def _holds_all(path: Path, questions: Sequence[Question], shards: Sequence[Path]) -> bool:
    """Whether a file has one run's answers to all questions, and the shards nothing else."""
    rows, _ = _rows(path)
    if {_key(row) for row in rows} != {item.key for item in questions} or len(set(map(_run_of, rows))) > 1:
        return False
    return {_line(row) for file in shards for row in _rows(file)[0]} <= set(map(_line, rows))


def run_of(path: Path) -> Run | None:
    """The run that an answer file of any program belongs to; None where it does not say so, or names several."""
    runs = {_run_of(row) for _, row in read_rows(path)}
    return runs.pop() if len(runs) == 1 else None


def answer_folder(results: Path) -> Path:
    """Where the answers behind a results file lie."""
    return results.with_suffix("") / "answers"


def answer_path(results: Path, benchmark: str, model: str) -> Path:
    """The answer file of a model, whose name becomes a file's; `answer_names` reads it from there."""
    safe_name = re.sub(r"[^\w.@-]+", "-", model).strip("-")
    return answer_folder(results) / f"{benchmark}.{safe_name}.jsonl"


def answer_names(paths: Sequence[Path], benchmark: str) -> list[str]:
    """What the models of answer files are called: as the files say, or by the files' names where that is not one each."""
    said = [run.model_id for path in paths if (run := run_of(path)) is not None and run.model_id]
    if len(set(said)) == len(paths):
        return said
    return short_names(
        [path.with_name(path.name.removesuffix(".jsonl").removeprefix(f"{benchmark}.")) for path in paths]
    )


def read_answers(path: Path, questions: Sequence[Question]) -> list[str]:
    """The texts of an answer file that any program wrote, in the order of the questions.

    Prompts must be those of the questions, but for "<image>" and an instruction at the end that one of the two lacks.

    Raises:
        ValueError: The file is damaged, or answers other questions.
    """
    answers = read_said(path, [item.text for item in questions])
    by_id: dict[str, list[Said]] = {}
    for each in answers:
        by_id.setdefault(each.question_id or photo_name(each.image).stem, []).append(each)
    used: set[int] = set()
    texts, missing = [], []
    for item in questions:
        rest = [each for each in _answers_to(item, by_id) if id(each) not in used]
        same = [each for each in rest if _same_prompt(each, item.text)]
        if not rest:
            missing.append(item)
        elif not same:
            raise ValueError(
                f"{path} is of another run: it answers {rest[0].prompt[:80]!r} as question {item.question_id}, "
                f"which is {item.text[:80]!r}."
            )
        else:
            used.add(id(same[0]))
            texts.append(same[0].text)
    if missing:
        raise ValueError(
            f"{path} answers {len(questions) - len(missing)} of {len(questions)} questions; the first that is missing "
            f"is {missing[0].question_id}."
        )
    if len(answers) > len(used):
        other = next(each for each in answers if id(each) not in used)
        raise ValueError(
            f"{path} has {len(answers)} answers to {len(questions)} questions: the question {other.question_id or other.image} "
            "is answered twice, or is none of them (all are measured: leave --limit out)."
        )
    return texts


def _answers_to(item: Question, by_id: Mapping[str, Sequence[Said]]) -> Sequence[Said]:
    """Those that name the question, or else its photo."""
    named = [each for each in by_id.get(str(item.question_id), ()) if each.question_id]
    if named or item.image is None:
        return named
    asked = photo_name(item.image)
    found = [each for each in by_id.get(asked.stem, ()) if not each.question_id]
    return [found[number] for number in closest(asked, [photo_name(each.image) for each in found])]


def _rows(path: Path) -> tuple[list[dict[str, Any]], int | None]:
    """Whole lines and the bytes they take; without a file, none. A last line that was cut off is left out."""
    if not path.is_file():
        return [], None
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"The file {path} was saved as UTF-16 since it was written here: save it as UTF-8.")
    rows, end = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.strip():
            end += len(line)
            continue
        try:
            row = json.loads(line.removeprefix(codecs.BOM_UTF8))
        except ValueError:
            row = None
        if not isinstance(row, dict) or any(row.get(name) is None for name in NEEDED):
            if end + len(line) == len(data) and not line.endswith(b"\n"):
                break
            raise ValueError(f"Line {number} of {path} is not an answer: remove it, or the file.")
        rows.append(row)
        end += len(line)
    return rows, end


def _check_rows(path: Path, rows: Sequence[dict[str, Any]], run: Run, questions: Sequence[Question]) -> None:
    """Raises ValueError unless the rows of a file are answers of this run to some of these questions, one each."""
    known, seen = {item.key for item in questions}, set()
    for row in rows:
        key, other = _key(row), _run_of(row)
        if key not in known or other != run or key in seen:
            raise ValueError(_other_run(path, row, other, run, key in seen, key in known))
        seen.add(key)


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """`Question.key` of what a row answers."""
    return str(row["question_id"]), str(row["prompt"])


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    """A row's metadata; other programs write there what they like."""
    facts = row.get("metadata")
    return facts if isinstance(facts, dict) else {}


def _run_of(row: dict[str, Any]) -> Run:
    facts = _facts(row)
    longest = facts.get("max_new_tokens")
    return Run(
        str(row.get("model_id") or ""),
        str(facts.get("fingerprint", "")),
        longest if isinstance(longest, int) else 0,
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


def _same_prompt(answer: Said, ours: str) -> bool:
    """Whether an answer is to this prompt; programs that keep the question alone leave out what stands around it."""
    theirs, ours = plain(answer.prompt), plain(ours)
    if answer.row.get("prompt"):
        return theirs.startswith(ours) or ours.startswith(theirs)
    return theirs in ours or ours in theirs
