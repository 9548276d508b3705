"""Text from outside, made fit to be shown or kept: without control characters, and without credentials.

Outside is whatever is not a constant of the program: documents, names of files and records, what a model generates,
what a server or a tokenizer answers, values of a TOML. A terminal obeys control characters in it: they rename the
window, write the clipboard, or erase the line above. URLs in it may hold passwords and signatures.

`trainer.processes.Terminal` and `PrintableStream` apply `presentable` to all that a command prints, and `UserError` to
its message; what is written to disk or sent to a tracker goes through `redacted`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

HIDDEN = "***"  # in place of a secret
# C0 but tab and newline, DEL, C1; what turns the direction of text; line separators; half surrogate pairs
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LINES = re.compile(f"[\t\n]|{CONTROLS.pattern}")

# user:password@ of a URL. A colon that no port follows begins a password, whatever stands in it. Without a colon it is
# a secret of http alone: in abfs://container@account/ it is part of the address, as org:repo is in github://org:repo@ref/.
# Repetitions are bounded, so that a long hostile text costs no time that grows with its square.
SCHEME = r"\b(?!github:|git:)([a-z][a-z0-9+.-]{0,30}://)"
PASSWORD = re.compile(SCHEME + r"[^\s/?#:@]{0,1000}:(?!:|\d+(?:[/?#]|\Z))[^\s]{0,1000}@", re.IGNORECASE)
PORT_LIKE = re.compile(SCHEME + r"[^\s/?#]{0,1000}:[^\s/?#]{0,1000}@", re.IGNORECASE)
USER = re.compile(r"\b((?:https?|ftps?|davs?)://)[^\s/?#]{0,1000}@", re.IGNORECASE)
QUERY = re.compile(r"[?&#;][^\s?&#;=]+=[^\s&#\"'<>]*(?:&[^\s&#=]+=[^\s&#\"'<>]*)*")
SECRET_KEY = re.compile(
    r"^sig$|signature|token$|secret|passw|^pwd$|^pass$|credential|^auth$|authorization|(?:^|[-_.])key$|api_?key|access_?key"
    r"|session(?:_?id)?$|jwt|^code$",
    re.IGNORECASE,
)
# What comes and goes with a signature: S3 and GCS, CloudFront and OSS, Azure.
SIGNING_KEY = re.compile(
    r"x-(?:amz|goog|oss)-.+|expires|policy|key-pair-id|googleaccessid"
    r"|s[verpit]|spr|ss|srt|sdd|scid|skoid|sktid|skt|ske|sks|skv|saoid|suoid",
    re.IGNORECASE,
)
# Tokens that are known by how they begin: Hugging Face, GitHub, GitLab, Slack, OpenAI and others, Google; a JWT.
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|sk-[\w-]{20,}|AIza[\w-]{35}|eyJ[\w-]{10,300}\.[\w-]{10,4000}\.[\w-]+)"
)
# A header, an option or a variable, and its value: Authorization: Bearer x, 'secret': 'x', AWS_SECRET_ACCESS_KEY=x.
NAMED = re.compile(
    r"((?:\bauthorization|\bcookie|passw(?:or)?d|secret|secret_access_key|api[-_]key|account_key|access_token|auth_token"
    r"|session_token|security_token|sas_token|(?-i:_TOKEN))['\"]?\s{0,3}[:=]\s{0,3}['\"]?"
    r"(?!(?:(?:bearer|basic|token)\s{1,3})?\*{3})(?:(?:bearer|basic|token)\s{1,3})?)[^\s'\",;&)}\]]+",
    re.IGNORECASE,
)
BEARER = re.compile(r"\b(bearer\s{1,3})[\w.~+/-]{8,}=*", re.IGNORECASE)
SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY", re.IGNORECASE)
SECRET_LENGTH = 8  # of a variable's value, from which on it is hidden wherever it stands


def printable(text: str) -> str:
    r"""Return text that a terminal only shows: control characters but newline and tab as `\x1b`, `\u202e`, `\udc80`."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def one_line(text: str) -> str:
    r"""Return a name as part of a line of ours: as `printable`, with its newlines and tabs as `\n` and `\t`."""
    return LINES.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def redacted(text: str) -> str:
    """Return text with `***` for each credential: in URLs, headers, options, and tokens known by how they begin.

    Of a URL, user and password go, and the values of query keys that hold a secret or come and go with one. What is
    left names the same file when the signature is renewed. Applied twice, it changes nothing more.
    """
    if "://" in text:
        text = PASSWORD.sub(rf"\g<1>{HIDDEN}@", text)
        text = PORT_LIKE.sub(rf"\g<1>{HIDDEN}@", text)
        text = USER.sub(rf"\g<1>{HIDDEN}@", text)
    text = QUERY.sub(_redacted_query, text)
    text = NAMED.sub(rf"\g<1>{HIDDEN}", text)
    text = BEARER.sub(rf"\g<1>{HIDDEN}", text)
    return TOKEN.sub(HIDDEN, text)


def _redacted_query(found: re.Match[str]) -> str:
    pairs = [pair.partition("=") for pair in found[0][1:].split("&")]
    if not any(SECRET_KEY.search(key) for key, _, _ in pairs):
        return found[0]
    hidden = [bool(SECRET_KEY.search(key) or SIGNING_KEY.fullmatch(key)) for key, _, _ in pairs]
    parts = [f"{key}={HIDDEN if hide else value}" for (key, _, value), hide in zip(pairs, hidden, strict=True)]
    return found[0][0] + "&".join(parts)


def public_name(path: str) -> str:
    """Return what a file is known by, in a checkpoint and across runs: its path, or its URL without credentials."""
    return redacted(path) if "://" in path else path


def is_withheld(path: str) -> bool:
    """Tell a URL that was kept without its credentials, and so cannot be opened."""
    return "://" in path and (f"//{HIDDEN}@" in path or f"={HIDDEN}" in path)


def without_credentials(value: Any) -> Any:
    """Return a value of plain types, such as a configuration, with the `public_name` of every URL in it."""
    if isinstance(value, Mapping):
        return {key: without_credentials(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_credentials(of) for of in value]
    return public_name(value) if isinstance(value, str) else value


@cache
def secret_values() -> Iterable[str]:
    """Return the values of environment variables that are named like secrets, the longest first."""
    named = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)}
    return sorted((value for value in named if len(value) >= SECRET_LENGTH), key=len, reverse=True)


def presentable(text: str) -> str:
    """Return text as a command prints it: `printable`, `redacted`, and without the values of secret variables."""
    for secret in secret_values():
        text = text.replace(secret, HIDDEN)
    return printable(redacted(text))
