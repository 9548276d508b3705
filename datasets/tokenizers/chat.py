"""Conversations to token ids: the tokenizer's own chat template, special tokens in it as ids, and which are answers.

The ids are those of transformers' `apply_chat_template`, but for the text of a special token in a *message*: it stays
text. While a conversation is encoded, each special token of the template is a single letter of a plane of Unicode
for private use, which a copy of the tokenizer knows as that token; the copy does not know the text any more.

    message  say <|im_end|>      ->  say 🄣   (a letter for the text)
    template                     ->  <|im_start|>user\nsay 🄣<|im_end|>\n
    encoded                      ->  🄐user\nsay <|im_end|>🄑\n       (🄐, 🄑: letters that are special tokens)

**Answers**, the tokens with loss, are what a template has in {% generation %}. Where it has none, or other roles than
the assistant's are trained, an answer begins where the template ends that is rendered for the messages before it (of
the assistant: with the prompt for an answer), and ends behind the first special token after its content, if only white
space is between them, else with its content.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from ...base import Json, read_bytes, text_of
from ..errors import DataConfigError
from .hf import HFTokenizer
from .protocol import LibraryError, TokenizeError, Tokenizer, library_errors

if TYPE_CHECKING:
    pass

TEMPLATE_BYTES = 2**20
FILE, KEY = "chat_template.jinja", "chat_template"
ROLES_OF_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Letters for special tokens, for their text in a message, and behind a message whose end is looked for.
TOKEN, TEXT, PROBE = 0x100000, 0x108000, "\U0010fffb"
MOST = TEXT - TOKEN
OWN = re.compile("[\U00100000-\U0010ffff]")
Message = Mapping[str, str]  # role and content
Trained = npt.NDArray[np.bool_]


class TemplateSource(NamedTuple):
    """Where a chat template is written, and what it is."""

    where: str
    text: str

    @property
    def fingerprint(self) -> str:
        """The sha256 of the template's text, by which ranks, plans and resumes compare it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def template_of(tokenizer: Tokenizer) -> TemplateSource:
    """Return the chat template beside a tokenizer.json: `chat_template.jinja`, else a key of `tokenizer_config.json`.

    Raises:
        DataConfigError: There is none.
    """
    if isinstance(tokenizer, HFTokenizer):
        file = tokenizer.file.with_name(FILE)
        if file.is_file():
            return TemplateSource(
                str(file), text_of(read_bytes(file, DataConfigError, TEMPLATE_BYTES), str(file), DataConfigError)
            )
        found = tokenizer.settings.get(KEY)
        if isinstance(found, list):  # several, by names
            found = next(
                (each.get("template") for each in found if isinstance(each, dict) and each.get("name") == "default"), None
            )
        if isinstance(found, str):
            return TemplateSource(f"{tokenizer.file.with_name('tokenizer_config.json')}, {KEY}", found)
    raise DataConfigError(
        f'format = "jsonl_messages": there is no chat template beside the tokenizer ({tokenizer.where}); it is read from '
        f"{FILE} or tokenizer_config.json, of tokenizer.kind hf"
    )


@lru_cache(maxsize=4)
def chat_tokenizer(tokenizer: HFTokenizer, roles: tuple[str, ...]) -> "ChatTokenizer":
    """Return a tokenizer with its chat template, one for all lanes: a copy of 150k tokens takes seconds.

    Args:
        tokenizer: What to encode with.
        roles: Whose messages are answers.

    Raises:
        DataConfigError: See `ChatTokenizer`.
    """
    return ChatTokenizer(tokenizer, roles)


class ChatTokenizer:
    """A tokenizer with its chat template.

    Args:
        tokenizer: What to encode with.
        roles: Whose messages are answers.

    Raises:
        DataConfigError: There is no template, or special tokens cannot be told from text.
    """

    def __init__(self, tokenizer: HFTokenizer, roles: Sequence[str]) -> None:
        from .chat_template import ChatTemplate, ChatTemplateError  # jinja2 takes time to load, and few jobs need it

        source = template_of(tokenizer)
        self._roles = frozenset(roles)
        try:
            self._template: ChatTemplate = ChatTemplate(source.text, _token_texts(tokenizer.settings))
        except ChatTemplateError as error:
            raise DataConfigError(f"{source.where}: {error}") from None
        self._refused: type[Exception] = ChatTemplateError
        self._marked = self._template.marks_answers and self._roles == {"assistant"}
        added = tokenizer._tokenizer.get_added_tokens_decoder().values()
        special = sorted({token.content for token in added if token.special})
        if len(special) > MOST:
            raise DataConfigError(f"{tokenizer.where}: {len(special):,} special tokens, of chats at most {MOST:,}")
        self._letters = {text: chr(TOKEN + number) for number, text in enumerate(special)}
        self._escapes = {text: chr(TEXT + number) for number, text in enumerate(special)}
        self._texts = {ord(escape): text for text, escape in self._escapes.items()}
        # The longest first, as the library finds them.
        longest = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest)) if special else r"(?!)")
        self._behind = re.compile(rf"\s*(?:{self._special.pattern})")
        self._copy, self._ids, own = _copied(tokenizer, self._letters)
        self._barred = np.array(sorted({own[text] for text in special if text in own} - {tokenizer.unk_id}), dtype=np.int64)

    def encode(self, messages: Sequence[Message]) -> tuple[npt.NDArray[np.int32], Trained]:
        """Return the ids of a conversation, and which of them are answers.

        Raises:
            TokenizeError: The template refuses the messages, or they hold what cannot be told from special tokens.
        """
        problem = partial(TokenizeError, offset=None, index=0)
        for number, message in enumerate(messages):
            if wrong := OWN.search(message["content"]) or OWN.search(message["role"]):
                raise problem(f"message {number} holds U+{ord(wrong[0]):X}: these letters, for private use, mark tokens here")
            if not re.fullmatch(r"[\w .-]+", message["role"]) or self._special.search(message["role"]):
                raise problem(f"message {number} has the role {message['role'][:40]!r}; a role is a name")
        try:
            text = self._answers([{**message, "content": self._escaped(message["content"])} for message in messages])
        except self._refused as error:
            raise problem(f"the chat template: {error}") from None
        text = self._special.sub(lambda found: self._letters[found[0]], text).translate(self._texts)
        text, spans = _spans(text)
        try:
            with library_errors():
                encoding = self._copy.encode(text, add_special_tokens=False)
        except LibraryError as error:
            raise problem(f"the tokenizers library fails at this conversation: {error}") from None
        found = np.array(encoding.ids, dtype=np.int64)
        if np.isin(found, self._barred).any():
            at = int(np.isin(found, self._barred).argmax())
            raise problem(f"the text {encoding.tokens[at]!r} of a message becomes the special token of this name")
        bounds = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        trained = np.zeros(len(found), dtype=np.bool_)
        for begin, end in spans:
            trained |= (bounds[:, 1] > begin) & (bounds[:, 0] < end)
        return self._ids[found], trained

    def _escaped(self, content: str) -> str:
        return self._special.sub(lambda found: self._escapes[found[0]], content)

    def _answers(self, messages: Sequence[Message]) -> str:
        """Return the text of a conversation, with `BEGIN` and `END` round each answer."""
        from .chat_template import BEGIN, END, MARKS

        text = self._template.render(messages)
        if self._marked:
            return text
        text = text.translate(MARKS)
        parts, done = [], 0
        for number, message in enumerate(messages):
            if message["role"] not in self._roles:
                continue
            begin, end = self._span(messages, number, text)
            if begin < done:
                raise self._refused(f"message {number} begins before the end of the answer before it")
            parts += [text[done:begin], BEGIN, text[begin:end], END]
            done = end
        return "".join([*parts, text[done:]])

    def _span(self, messages: Sequence[Message], number: int, text: str) -> tuple[int, int]:
        """Return where in the text of a conversation a message begins and ends that is an answer."""
        from .chat_template import MARKS

        message = messages[number]
        before = ""
        if number:
            before = self._template.render(messages[:number], prompt=message["role"] == "assistant").translate(MARKS)
        if not text.startswith(before):
            raise self._refused(
                f"it writes the messages before message {number} in another way when they stand alone, so that it cannot be "
                "told where the answer begins; put {% generation %} round answers in it"
            )
        probed = [*messages[:number], {**message, "content": message["content"] + PROBE}, *messages[number + 1 :]]
        _, probe, rest = self._template.render(probed).translate(MARKS).rpartition(PROBE)
        if not probe or not text.endswith(rest) or (end := len(text) - len(rest)) < len(before):
            raise self._refused(f"it leaves out the content of message {number}, or changes what follows by it")
        closing = self._behind.match(text, end)
        return len(before), closing.end() if closing else end


def _copied(
    tokenizer: HFTokenizer, letters: Mapping[str, str]
) -> tuple[tokenizers.Tokenizer, npt.NDArray[np.int32], dict[str, int]]:
    """Return a copy that knows special tokens by letters, the true id for each id of it, and its model's vocabulary.

    Raises:
        DataConfigError: The copy does not find a special token by its letter.
    """
    content = json.loads(tokenizer._tokenizer.to_str())
    names = {letters.get(token["content"], token["content"]): token["id"] for token in content["added_tokens"]}
    for token in content["added_tokens"]:
        token["content"] = letters.get(token["content"], token["content"])
    copy = tokenizers.Tokenizer.from_str(json.dumps({**content, "post_processor": None, "truncation": None, "padding": None}))
    own: dict[str, int] = copy.get_vocab(with_added_tokens=False)
    found = {name: int(copy.token_to_id(name) or 0) for name in names}
    ids = np.arange(max([*own.values(), *found.values()]) + 1, dtype=np.int32)
    for name, index in names.items():
        ids[found[name]] = index
    taken = set(own.values())
    for text, letter in letters.items():
        if copy.encode(letter, add_special_tokens=False).ids != [found[letter]] or found[letter] in taken:
            raise DataConfigError(f"{tokenizer.where}: its special token {text!r} cannot be told from text in chats")
    return copy, ids, own


def _spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Take the marks out of a text, and return where they were: beginning and end of each answer."""
    from .chat_template import BEGIN, END

    plain, places, at = [], [], 0
    for part in re.split(f"([{BEGIN}{END}])", text):
        if part in (BEGIN, END):
            places.append(at)
        else:
            plain.append(part)
            at += len(part)
    return "".join(plain), list(zip(places[::2], places[1::2], strict=True))


def _token_texts(settings: Json) -> dict[str, str]:
    """Return the texts of special tokens by the names that templates have for them."""
    found = {f"{role}_token": settings.get(f"{role}_token") for role in ROLES_OF_TOKENS}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}
