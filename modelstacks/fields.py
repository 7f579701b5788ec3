"""The kinds of values a stack file holds: whole numbers, names, label keys, and what is wrong with anything else."""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NAMESPACE = "modelstacks"
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
# References as registries take them (github.com/distribution/reference): a host has a dot, a port, or is localhost.
_HOST = r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)+(:[0-9]{1,5})?"
_HOST += r"|[a-z0-9]([-a-z0-9]*[a-z0-9])?:[0-9]{1,5}|localhost)"
_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
REGISTRY = rf"^{_HOST}(/{_PART})*$"
IMAGE = rf"^({_HOST}/)?{_PART}(/{_PART})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(@sha256:[0-9a-f]{{64}})?$"
# A folder's name that means the same to a shell, to Kubernetes and to an engine's command line.
PATH_PART = r"[A-Za-z0-9._@+=,~-]+"


def _in_digits(value: str) -> int:
    """What a number with a unit most likely means, as an example: 128k is 131072."""
    units = {"k": 1024, "m": 10**6}
    found = re.fullmatch(r"([0-9]{1,6})\s*([km])", value.strip().lower())
    return int(found[1]) * units[found[2]] if found is not None else 2


def whole_number(value: object) -> object:
    """Accept 2 and "2" (Pulumi writes config values as text), and nothing that only looks like a number."""
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,12}", value):
            raise ValueError(f"must be a whole number without unit, such as {_in_digits(value)}")
        return int(value)
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def text(value: object) -> object:
    """Accept text without control characters."""
    if not isinstance(value, str):
        raise ValueError("must be text")
    if any(unicodedata.category(character) in ("Cc", "Cs") or character in "\ufffe\uffff" for character in value):
        raise ValueError("must not hold control characters")
    return value


def _flag(value: object) -> object:
    """Accept true and "true" (Pulumi writes config values as text), and nothing that other readers take for it."""
    if isinstance(value, bool):
        return value
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


MOST = 4096
Count = Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=MOST)]
Tokens = Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=100_000_000)]
Usd = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1, allow_inf_nan=False)]
Word = Annotated[str, BeforeValidator(text), Field(min_length=1, max_length=253)]
Flag = Annotated[bool, BeforeValidator(_flag)]
# Names of objects whose kind allows dots: Secrets, claims, storage and priority classes.
ObjectName = Annotated[Word, Field(pattern=rf"^{_SUBDOMAIN}$")]
DnsLabel = Annotated[str, BeforeValidator(text), Field(pattern=DNS_LABEL)]


def camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


LabelKey = Annotated[str, BeforeValidator(text), Field(pattern=rf"^({_SUBDOMAIN}/)?{_NAME}$", max_length=317)]
LabelValue = Annotated[str, BeforeValidator(text), Field(pattern=rf"^({_NAME})?$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=camel, populate_by_name=True)


def key_path(key: str) -> str:
    return f"{NAMESPACE}:{key}"


def resource_name(context: str) -> str:
    """A context in the name of a Pulumi resource: some clouds put slashes and colons into them."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", context)


def digest(*parts: object) -> str:
    """Eight digits for the name of an object that cannot be changed: another content is another object."""
    return hashlib.sha256("|".join(str(part) for part in parts).encode()).hexdigest()[:8]


def nearest(word: str, words: tuple[str, ...]) -> str | None:
    folded = {candidate.lower(): candidate for candidate in words}
    longer = [candidate for low, candidate in folded.items() if low.startswith(f"{word.lower()}-")]
    if longer:
        return " or ".join(longer)
    near = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    return folded[near[0]] if near else None
