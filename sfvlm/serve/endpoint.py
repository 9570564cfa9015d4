"""A server of OpenAI's interface, asked as a host is: photos and questions to greedy answers, many at once.

Any engine will do: vLLM with a host of ours, a dense one, anybody's. A photo goes as PNG, so that the server sees the same
pixels as a host in this process; the chat template is the server's.
"""

import base64
import hashlib
import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ..util.errors import shortened
from ..vqa.ask import Unanswered

OF_REQUEST = (400, 413, 415, 422)  # statuses that speak of one request, and not of the server
KEY = "OPENAI_API_KEY"
NO_KEY = "none"  # the client wants one; servers without keys ignore it


class Endpoint:
    """A model behind a server.

    Args:
        url: As clients take it, such as http://127.0.0.1:8000/v1.
        model: What requests call it; default the server's only one.
        concurrency: Requests at once.
        key: Environment variable with the key, if the server wants one.
        retries: Of a request that got no answer, or that the server put off (429, 5xx), later each time.
        timeout: Seconds that an answer may take.

    Raises:
        ValueError: The server does not answer, or has not this model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        concurrency: int = 8,
        key: str = KEY,
        retries: int = 6,
        timeout: float = 600,
    ) -> None:
        self.url, self.concurrency, self._retries = checked_url(url), concurrency, retries
        client = _client_package()
        self._client = client.OpenAI(
            base_url=self.url, api_key=os.environ.get(key) or NO_KEY, max_retries=retries, timeout=timeout
        )
        self._errors = client
        self._cards = {card.id: card for card in self._models()}
        self.model = model or self._only_model()
        if self.model not in self._cards:
            raise ValueError(f"The server {self.url} has no model {self.model!r}; it has {', '.join(self._cards)}.")

    @property
    def source(self) -> str:
        """What it is called in results."""
        return f"{os.path.basename(self.model.rstrip('/'))}@{urlsplit(self.url).netloc}"

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of what the server says of the model: its weights are not to be seen from here."""
        card = self._cards[self.model].model_dump()
        said = {name: card.get(name) for name in ("id", "root", "parent", "owned_by", "max_model_len")}
        return hashlib.sha256(repr(sorted(said.items())).encode()).hexdigest()[:12]

    @property
    def settings_fingerprint(self) -> str:
        return ""

    def answer(
        self, images: Sequence[Image.Image | None], prompts: Sequence[str], *, max_new_tokens: int = 64
    ) -> list[str]:
        """Greedy answers to prompts about one photo each, or about none; `Unanswered` what the server refused.

        Raises:
            ValueError: The server is gone, or refuses everything (its key, its model).
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = [
                pool.submit(self._said, image, prompt, max_new_tokens)
                for image, prompt in zip(images, prompts, strict=True)
            ]
            try:
                return [each.result() for each in asked]
            except BaseException:
                pool.shutdown(cancel_futures=True)  # of those that wait for their turn
                raise

    def facts(self, image: Image.Image, prompt: str) -> dict[str, Any]:
        """How long the prompt of a question about a photo is, as the server counts."""
        try:
            usage = self._ask(image, prompt, 1).usage
        except Refused:
            return {}
        return {} if usage is None else {"prompt_tokens": usage.prompt_tokens}

    def timed(self, url: str, prompt: str, new_tokens: int) -> tuple[float, float, int, int]:
        """Seconds to the first word and to the last of a streamed answer, and tokens of prompt and answer.

        Args:
            url: A photo, as `as_url` gives it.
            prompt: The question.
            new_tokens: Words of the answer; vLLM is told to write no fewer.

        Raises:
            ValueError: The server is gone, or refuses the request.
        """
        import httpx  # the client's own

        start = time.perf_counter()
        first, usage = None, None
        # As long an answer from every model, where the engine knows how.
        extra = {"ignore_eos": True} if self._cards[self.model].owned_by == "vllm" else {}
        try:
            stream = self._create(
                url, prompt, new_tokens, stream=True, stream_options={"include_usage": True}, extra_body=extra
            )
            for chunk in stream:
                if first is None and chunk.choices and chunk.choices[0].delta.content:
                    first = time.perf_counter() - start
                usage = chunk.usage or usage
        except Refused as error:
            raise ValueError(f"The server {self.url} refuses a request: {error}") from error
        except (self._errors.OpenAIError, httpx.HTTPError) as error:
            raise ValueError(f"The server {self.url} broke off an answer: {error}") from error
        whole = time.perf_counter() - start
        prompt_tokens, written = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        return (whole if first is None else first), whole, prompt_tokens, written

    def _said(self, image: Image.Image | None, prompt: str, longest: int) -> str:
        try:
            text = self._ask(image, prompt, longest).choices[0].message.content
        except Refused as error:
            return Unanswered(str(error))
        return (text or "").strip()

    def _ask(self, image: Image.Image | None, prompt: str, longest: int) -> Any:
        return self._create(None if image is None else as_url(image), prompt, longest)

    def _create(self, url: str | None, prompt: str, longest: int, **options: Any) -> Any:
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if url is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        messages: list[Any] = [{"role": "user", "content": content}]
        errors = self._errors
        try:
            return self._client.chat.completions.create(
                model=self.model, messages=messages, temperature=0, max_tokens=longest, **options
            )
        except errors.APIStatusError as error:
            if error.status_code in OF_REQUEST:
                raise Refused(f"status {error.status_code}: {shortened(_words(error))}") from error
            raise ValueError(
                f"The server {self.url} answers with status {error.status_code}: {shortened(_words(error))}"
            ) from error
        except errors.APIConnectionError as error:  # its timeouts too
            raise ValueError(
                f"The server {self.url} does not answer ({self._retries + 1} times asked): {error}"
            ) from error

    def _models(self) -> list[Any]:
        errors = self._errors
        try:
            return list(self._client.models.list())
        except errors.APIStatusError as error:
            raise ValueError(
                f"{self.url}/models answers with status {error.status_code}, not with models: write the address as "
                "http://127.0.0.1:8000/v1, and the key in the variable of --key."
            ) from error
        except errors.OpenAIError as error:
            raise ValueError(f"No server answers at {self.url}: {error}") from error

    def _only_model(self) -> str:
        if len(self._cards) != 1:
            raise ValueError(
                f"The server {self.url} has {len(self._cards)} models ({', '.join(self._cards) or 'none'}): say which by --server-model."
            )
        return next(iter(self._cards))


class Refused(Exception):
    """A request that the server will not answer, however often it is asked."""


def checked_url(url: str) -> str:
    """An address as clients take it, without the slash at its end.

    Raises:
        ValueError: It is none.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} is no server's address: write it as http://127.0.0.1:8000/v1.")
    return url.rstrip("/")


def as_url(image: Image.Image) -> str:
    """A photo as a data address, no pixel changed."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _words(error: Any) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    said = (
        body.get("message") or (body.get("error") or {}).get("message")
        if isinstance(body.get("error", {}), dict)
        else None
    )
    return str(said or error.message)


def _client_package() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ValueError("Asking a server needs the package openai: pip install 'sfvlm[eval]'.") from error
    return openai
