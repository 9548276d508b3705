"""Documents to ids, and the weights of these: text letter by letter, lists of ids as they are, messages by a template.

What the bytes of a document are, `Content`, its reader says. Ids and messages may hold an eos inside of a document;
text never does, as tokenizers refuse it.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ...base import changed
from ..errors import DataConfigError
from ..tokenizers import Encoded, HFTokenizer, TokenizeError, Tokenizer, chat_tokenizer, template_of
from .letters import LetterEncoder, Weighed
from .treatment import DocumentConfig

# UTF-8; token ids, int32 and little-endian; or JSON of messages.
Content: TypeAlias = Literal["text", "ids", "messages"]
IDS = np.dtype("<i4")
SHAPE = "a message is {role, content}, both of them text"


class Encoder(Protocol):
    """Documents to ids, each with its eos."""

    def __call__(self, documents: Sequence[bytes], tag: int = 0, *, goes_on: bool = False) -> Weighed:
        """Encode documents, see `LetterEncoder`. Raises TokenizeError for the first that cannot be."""
        ...


def make_encoder(content: Content, config: DocumentConfig, tokenizer: Tokenizer) -> Encoder:
    """Return what encodes documents. Raises DataConfigError where the tokenizer cannot."""
    if content == "text":
        return LetterEncoder(config.letters, tokenizer)
    return (IdEncoder if content == "ids" else MessageEncoder)(config, tokenizer)


def content_complaints(contents: Sequence[Content | None], config: DocumentConfig, tokenizer: Tokenizer) -> list[str]:
    """Name the keys that do not fit what documents are, a line for each; None: token shards."""
    wrong = []
    if contents and {"text"}.issuperset(contents) and config.keeps_eos:
        wrong.append('data.interior_eos = "keep": text never holds an eos; it is for token shards, ids and messages')
    if "messages" not in contents and changed(config, "trained_roles"):
        wrong.append(f"data.trained_roles = {config.trained_roles}: only messages have roles; leave it out")
    if contents and "text" not in contents:
        found = {key: str(value).lower() for key, value in config.changed_letters.items()} if None not in contents else {}
        wrong += [f"data.{key} = {value}: is of text, and there are only ids or messages" for key, value in found.items()]
    if "messages" in contents:
        try:
            MessageEncoder(config, tokenizer)
        except DataConfigError as error:
            wrong.append(str(error))
    return wrong


def content_settings(content: Content | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what beside the tokenizer decides the ids of documents, as JSON. Raises DataConfigError."""
    return {"template": template_of(tokenizer).fingerprint} if content == "messages" else {}


class IdEncoder:
    """Ids as they stand in the data; one that lacks its eos is given it."""

    def __init__(self, config: DocumentConfig, tokenizer: Tokenizer) -> None:
        self._keeps_eos = config.keeps_eos
        self._eos, self._bos, self._vocab_size = tokenizer.eos_id, tokenizer.bos_id, tokenizer.vocab_size
        # No document has these: a model could not tell them from those of its own rows.
        barred = {"pad": tokenizer.pad_id, "mask": tokenizer.mask_id}
        self._barred = {role: index for role, index in barred.items() if index not in (None, tokenizer.eos_id)}

    def __call__(self, documents: Sequence[bytes], tag: int = 0, *, goes_on: bool = False) -> Weighed:
        """Check ids and end each document. Raises TokenizeError."""
        parts = [self.ended(np.frombuffer(data, dtype=IDS), number) for number, data in enumerate(documents)]
        ids = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
        return Weighed(Encoded(ids, [len(part) for part in parts]), None, 0)

    def ended(self, ids: npt.NDArray[np.int32], number: int) -> npt.NDArray[np.int32]:
        """Return the ids of document `number` with its eos."""
        if len(ids) and (largest := int(ids.max())) >= self._vocab_size:
            raise TokenizeError(f"id {largest} is outside of the tokenizer's vocabulary of {self._vocab_size}", None, number)
        for role, index in self._barred.items():
            if (found := ids == index).any():
                raise TokenizeError(f"token {int(found.argmax())} is the {role} {index}, which no document has", None, number)
        if self._bos is not None and len(ids) and ids[0] != self._bos:
            raise TokenizeError(f"it begins with {ids[0]}, and a document begins with bos {self._bos}", None, number)
        if not len(ids) or ids[-1] != self._eos:
            ids = np.append(ids, np.int32(self._eos))
        inside = ids[:-1] == self._eos
        if not self._keeps_eos and inside.any():
            problem = f"token {int(inside.argmax())} is the eos {self._eos}, inside of the document"
            raise TokenizeError(f'{problem}; data.interior_eos = "keep" takes it as a token', None, number)
        return ids


class MessageEncoder:
    """Conversations by the tokenizer's chat template; the weight of a token is 1 in an answer and else 0."""

    def __init__(self, config: DocumentConfig, tokenizer: Tokenizer) -> None:
        template_of(tokenizer)
        assert isinstance(tokenizer, HFTokenizer), "no other has a template"
        self._chat = chat_tokenizer(tokenizer, tuple(config.trained_roles))
        self._ids = IdEncoder(config, tokenizer)

    def __call__(self, documents: Sequence[bytes], tag: int = 0, *, goes_on: bool = False) -> Weighed:
        """Render and encode conversations. Raises TokenizeError."""
        ids, weights = [], []
        for number, data in enumerate(documents):
            messages = json.loads(data)
            self._check(messages, number)
            if not messages:
                ids.append(self._ids.ended(np.empty(0, dtype=np.int32), number))
                weights.append(np.zeros(1, dtype=np.float32))
                continue
            try:
                found, trained = self._chat.encode(messages)
            except TokenizeError as error:
                raise TokenizeError(error.problem, None, number) from None
            ended = self._ids.ended(found, number)
            # An eos that is put behind is a target where the token before it is.
            ids.append(ended)
            weights.append(np.append(trained, trained[-1:])[: len(ended)].astype(np.float32))
        lengths = [len(part) for part in ids]
        if not ids:
            return Weighed(Encoded(np.empty(0, dtype=np.int32), []), np.empty(0, dtype=np.float32), 0)
        return Weighed(Encoded(np.concatenate(ids), lengths), np.concatenate(weights), 0)

    def _check(self, messages: list[Any], number: int) -> None:
        """Refuse messages of another shape. Raises TokenizeError."""
        for place, message in enumerate(messages):
            if not isinstance(message, dict):
                raise TokenizeError(f"message {place} is a {type(message).__name__}; {SHAPE}", None, number)
            if missing := [key for key in ("role", "content") if key not in message]:
                raise TokenizeError(f"message {place} has no {missing[0]!r}; {SHAPE}", None, number)
            if others := message.keys() - {"role", "content"}:
                raise TokenizeError(f"message {place} has {min(others)[:40]!r} too, which is not read; {SHAPE}", None, number)
            for key, value in message.items():
                if not isinstance(value, str):
                    raise TokenizeError(f"message {place}: {key!r} is a {type(value).__name__}; {SHAPE}", None, number)
