"""A tokenizer's chat template, rendered in jinja's sandbox: from messages to the text that a model of chats is shown.

A template is a program out of a file that others wrote. The sandbox keeps it from attributes, files and code; it sees
messages and the texts of special tokens, and has neither a clock nor chance, so that rows follow from the configuration
alone. Its loops, numbers and output have limits; single operations on long texts have none but these.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typing_extensions import override

# Rounds of all loops and calls of macros for one conversation, and letters of its text.
STEPS, LETTERS = 2**20, 2**26
BITS = 64  # of a number
# Round what stands in {% generation %}: of a plane of Unicode that is for private use.
BEGIN, END = "\U0010fffc", "\U0010fffd"
MARKS = {ord(BEGIN): None, ord(END): None}


class ChatTemplateError(ValueError):
    """A template refuses messages, or fails; the text says why."""


class ChatTemplate:
    """A compiled template.

    Args:
        source: Of the template.
        tokens: Texts of special tokens by the names that templates have for them: `eos_token`.

    Attributes:
        marks_answers: Whether it says by {% generation %} what is an answer.

    Raises:
        ChatTemplateError: It is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._environment = _Sandbox()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # a template that cannot be parsed, or compiled: Python's own limits too
            raise ChatTemplateError(f"it is no template: {error}") from None
        self._tokens = dict(tokens)
        self.marks_answers = re.search(r"\{%[-+]?\s*generation\s*[-+]?%\}", source) is not None

    def render(self, messages: Sequence[Mapping[str, str]], *, prompt: bool = False) -> str:
        """Return the text of a conversation, with `BEGIN` and `END` round each answer where the template marks them.

        Args:
            messages: {role, content} each.
            prompt: Whether the beginning of an answer follows.

        Raises:
            ChatTemplateError: The template refuses them, fails, or takes too much.
        """
        self._environment.steps = 0
        parts, letters = [], 0
        variables = {**self._tokens, "messages": [dict(message) for message in messages]}
        try:
            for part in self._template.generate(**variables, tools=None, documents=None, add_generation_prompt=prompt):
                parts.append(part)
                if (letters := letters + len(part)) > LETTERS:
                    raise ChatTemplateError(f"its text has more than {LETTERS:,} letters")
        except ChatTemplateError:
            raise
        except Exception as error:  # whatever Python raises of what a template does
            raise ChatTemplateError(str(error) or type(error).__name__) from None
        return "".join(parts)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates as transformers renders them, with limits.

    Attributes:
        steps: Rounds of loops and calls of macros so far.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Answers, loopcontrols])
        self.steps = 0
        self.filters["tojson"] = _to_json
        for name in ("center", "format", "urlize", "wordwrap", "xmlattr", "random"):  # fill up, or are not text of chats
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _refuse

    def count_step(self) -> str:
        """Count a round of a loop, or a call of a macro."""
        self.steps += 1
        if self.steps > STEPS:
            raise ChatTemplateError(f"its loops have more than {STEPS:,} rounds")
        return ""

    @override
    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            assert isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock))
            call = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None)  # no template has this name
            node.body.insert(0, nodes.Output([call]).set_lineno(node.lineno, override=True).set_environment(self))
        return tree

    @override
    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [size for size in map(_size, (left, right)) if size is not None]
        if operator == "%" and isinstance(left, str):
            raise ChatTemplateError("it formats text by %")
        if operator == "**" and not (len(sizes) == 2 and abs(sizes[0]).bit_length() * abs(sizes[1]) <= BITS):
            raise ChatTemplateError("a power of it is too large")
        if operator == "*" and len(sizes) == 2 and abs(sizes[0] * sizes[1]) > LETTERS:
            raise ChatTemplateError("a product of it is too large")
        if operator == "+" and len(sizes) == 2 and abs(sizes[0]) + abs(sizes[1]) > LETTERS:
            raise ChatTemplateError("a sum of it is too large")
        return super().call_binop(context, operator, left, right)


class _Answers(Extension):
    """{% generation %} ... {% endgeneration %}, which stand round what a model is to write."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    @override
    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Macro) -> str:
        return f"{BEGIN}{caller()}{END}"


def _size(value: Any) -> int | None:
    """Return an integer itself, and how much a text or a list holds; None of anything else."""
    return value if isinstance(value, int) else len(value) if hasattr(value, "__len__") else None


def _refuse(message: str) -> NoReturn:
    raise ChatTemplateError(str(message))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """As transformers has it: jinja's own escapes what HTML must."""
    if indent is not None and not 0 <= indent <= 16:
        raise ChatTemplateError(f"it indents JSON by {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
