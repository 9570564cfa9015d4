"""A host's chat template: which one it has, in what form it takes what is said, and conversations written in it.

Templates that were made for photos take a turn as a list of parts. Those of language models, which many exports keep, take it
as a text: the photo's mark then stands in it as people write it by hand, "<image>\\n" in its place. How a template takes the turns
of each role is found by letting it write a few words, so that one that loses a photo or a word is never used.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..util.errors import reason, shortened

Message = dict[str, Any]
Part = dict[str, Any]
QUESTION, ANSWER, ORDER = "What color is it?", "It is red.", "Be brief."  # that no template has of its own


def user_message(text: str, images: int = 0) -> Message:
    """A user's turn: so many photos, then the text."""
    return {"role": "user", "content": [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]}


def assistant_message(text: str) -> Message:
    """A turn of the host's."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def template_of(processor: Any, source: str = "the host") -> str:
    """The Jinja template that a host is asked by: its processor's, else its tokenizer's.

    Raises:
        ValueError: There is none, or there are several and none is the default.
    """
    names: list[str] = []
    for owner in (processor, processor.tokenizer):
        found = getattr(owner, "chat_template", None)
        if isinstance(found, list | tuple):  # as tokenizer_config.json and chat_template.json may write several
            found = {each["name"]: each["template"] for each in found}
        if isinstance(found, dict):
            names += [name for name in found if name not in names]
            found = found.get("default")
        if found:
            return found.removeprefix("\ufeff") if isinstance(found, str) else found
    if names:
        raise ValueError(
            f"{source} has chat templates named {', '.join(names)}, and none named default, so that it is unknown by which to ask "
            "it: save the one for questions about photos as chat_template.jinja in its folder."
        )
    raise ValueError(
        f"The processor of {source} has no chat template, and its tokenizer neither, so that it is unknown how to ask it: save "
        "one as chat_template.jinja in its folder."
    )


def written(processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
    """A conversation in the host's own chat template; what a user types does not pass for a photo.

    Raises:
        ValueError: The template cannot be followed: it fails, or has not one mark for each photo.
    """
    mark, forms = processor.image_token, forms_of(processor)
    turns = [{"role": each["role"], "content": forms.content(each, mark)} for each in messages]
    try:
        text = _rendered(processor, turns, add_generation_prompt)
    except ValueError as error:
        raise ValueError(f"The host's chat template cannot be followed: {error}") from error
    photos = sum(part["type"] == "image" for message in messages for part in parts_of(message))
    if text.count(mark) != photos:
        raise ValueError(
            f"The host's chat template writes {mark} {text.count(mark)} times where {photos} photos are shown: "
            f"{shortened(text)!r}."
        )
    return text


def check_mark(model: Any, processor: Any, source: str) -> None:
    """Raises ValueError unless processor and model mean the same token by a photo."""
    mark, ours, theirs = processor.image_token, processor.image_token_id, model.config.image_token_id
    if processor.tokenizer.encode(mark, add_special_tokens=False) != [ours]:
        raise ValueError(f"{mark} is no token of its own in the tokenizer of {source}: add it as a special token.")
    if ours != theirs:
        raise ValueError(
            f"The processor of {source} writes {mark} for a photo, which is token {ours}, and its model reads photos at token "
            f"{theirs} (image_token_id in config.json): one of the two is another host's."
        )


def lacks_start(processor: Any, text: str) -> bool:
    """Whether the tokenizer must add what a text starts with: some templates write it themselves."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))


def start_is_left_to_tokenizer(processor: Any) -> bool:
    """Whether prompts start with a token that the tokenizer adds and the chat template does not write.

    Then a server of chats, which takes the template's text for all there is (OpenAI's interface, as vLLM has it), asks the host
    without it.
    """
    tokenizer = processor.tokenizer
    adds = tokenizer.bos_token is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    return adds and lacks_start(processor, written(processor, [user_message(QUESTION, 1)]))


def with_start(template: str) -> str:
    """The template, writing first what prompts start with."""
    return "{{ bos_token }}" + template


def parts_of(message: Message) -> list[Part]:
    """A message's content as a list of parts."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_parts(parts: Sequence[Part], mark: str) -> Any:
    return [dict(part) if part["type"] == "text" else {"type": part["type"]} for part in parts]


def _as_text(parts: Sequence[Part], mark: str) -> Any:
    return "".join(part["text"] if part["type"] == "text" else f"{mark}\n" for part in parts)


def _as_one_part(parts: Sequence[Part], mark: str) -> Any:
    return [{"type": "text", "text": _as_text(parts, mark)}]


def _as_words(parts: Sequence[Part], mark: str) -> Any:
    return "".join(part["text"] for part in parts if part["type"] == "text")


Form = Callable[[Sequence[Part], str], Any]
# The first that a template follows is taken. The last is for those that write the photo's mark by themselves.
FORMS: tuple[Form, ...] = (_as_parts, _as_text, _as_one_part, _as_words)


class Forms(NamedTuple):
    """How a template takes the turns of each role; or why it does not."""

    user: Form
    assistant: Form | str
    system: Form | str

    def content(self, message: Message, mark: str) -> Any:
        """A message's content for the template, without marks that somebody typed."""
        form = {"assistant": self.assistant, "system": self.system}.get(message["role"], self.user)
        if isinstance(form, str):
            raise ValueError(form)
        parts = [
            dict(part, text=_without(mark, part["text"])) if part["type"] == "text" else part
            for part in parts_of(message)
        ]
        return form(parts, mark)


_KNOWN: "WeakKeyDictionary[Any, tuple[str, str, Forms]]" = WeakKeyDictionary()


def forms_of(processor: Any) -> Forms:
    """How the processor's template takes what is said.

    Raises:
        ValueError: It cannot be followed even for one question about one photo.
    """
    template, mark = template_of(processor), processor.image_token
    known = _KNOWN.get(processor)
    if known is None or known[:2] != (template, mark):
        known = _KNOWN[processor] = (template, mark, _probe(processor, mark))
    return known[2]


def _probe(processor: Any, mark: str) -> Forms:
    asked = user_message(QUESTION, 1)
    user, problem = _first_that_works(processor, mark, [asked], asked, QUESTION, 1)
    if user is None:
        raise ValueError(f"The host's chat template cannot be followed: {problem}")
    question = {"role": "user", "content": user(parts_of(asked), mark)}
    found: list[Form | str] = []
    for role, said, place in (("assistant", ANSWER, 1), ("system", ORDER, 0)):
        turns: list[Message] = [question]
        turns.insert(place, {"role": role, "content": [{"type": "text", "text": said}]})
        form, problem = _first_that_works(processor, mark, turns, turns[place], said, 1)
        found.append(form or f"The host's chat template has no place for a turn of the {role}: {problem}")
    return Forms(user, *found)


def _first_that_works(
    processor: Any, mark: str, turns: Sequence[Message], tried: Message, said: str, photos: int
) -> tuple[Form | None, str]:
    """The first form of one of the turns in which the template writes its words and a mark for each photo; else why none does."""
    problems = []
    for form in FORMS:
        here = [dict(turn, content=form(parts_of(turn), mark)) if turn is tried else turn for turn in turns]
        try:
            text = _rendered(processor, here, add_generation_prompt=tried["role"] == "user")
        except ValueError as error:
            problems.append(str(error))
            continue
        if said not in text or _shows_code(text, said):
            problems.append(f"it does not write what the {tried['role']} says, but {shortened(text)!r}.")
        elif text.count(mark) == photos:
            return form, ""
        else:
            problems.append(
                f"it writes {mark} {text.count(mark)} times where {photos} photos are shown: {shortened(text)!r}."
            )
            if form is _as_parts and _marks_photos(processor, here, text):
                break  # by another mark than the processor's, or by several
    # The last reasons are of forms that few templates take.
    return None, problems[min(1, len(problems) - 1)]


def _shows_code(text: str, said: str) -> bool:
    """Whether a template wrote the list of parts itself, brackets and all."""
    return any(f"{quote}text{quote}: {quote}{said}" in text for quote in "'\"")


def _marks_photos(processor: Any, turns: Sequence[Message], text: str) -> bool:
    """Whether a template writes something for a photo."""
    without = [
        dict(turn, content=[part for part in turn["content"] if part["type"] != "image"])
        if isinstance(turn["content"], list)
        else turn
        for turn in turns
    ]
    try:
        return _rendered(processor, without, add_generation_prompt=True) != text
    except ValueError:
        return False


def _rendered(processor: Any, turns: Sequence[Message], add_generation_prompt: bool) -> str:
    """Raises ValueError with the template's own reason."""
    try:
        return processor.apply_chat_template(
            list(turns),
            chat_template=template_of(processor),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # of Jinja: syntax, undefined names, types, the template's own refusals
        raise ValueError(f"it ends in an error ({type(error).__name__}: {reason(error)}).") from error


def _without(mark: str, text: str) -> str:
    """A text with no mark in it, not even one that remains where another was taken out of it."""
    while mark in text:
        text = text.replace(mark, "")
    return text
