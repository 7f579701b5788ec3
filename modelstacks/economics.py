"""What tokens, queries and months cost: pure functions of plain numbers, each with its units.

Money is USD, a month is 730 hours, `utilization` the share of a month that a replica is busy at the stated throughput.
Numbers that cannot be meant (a throughput of zero, a negative price) raise ValueError.
"""

from __future__ import annotations

from dataclasses import dataclass

HOURS_PER_MONTH = 730
_SECONDS_PER_HOUR = 3600


def usd_per_month(usd_per_hour: float) -> float:
    """USD for 730 hours at USD per hour."""
    return _not_negative(usd_per_hour, "usd_per_hour") * HOURS_PER_MONTH


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float, utilization: float = 1.0) -> float:
    """USD for a million tokens, from USD per hour and the tokens per second that hour's machines give when busy."""
    tokens_per_hour = _positive(tokens_per_s, "tokens_per_s") * _SECONDS_PER_HOUR * _share(utilization)
    return _not_negative(usd_per_hour, "usd_per_hour") / tokens_per_hour * 1e6


def queries_per_second(tokens_per_s: float, output_tokens: float) -> float:
    """Answers of `output_tokens` tokens per second, from output tokens per second."""
    return _not_negative(tokens_per_s, "tokens_per_s") / _positive(output_tokens, "output_tokens")


def tokens_per_month(tokens_per_s: float, utilization: float = 1.0) -> float:
    """Tokens in 730 hours, from tokens per second."""
    seconds = HOURS_PER_MONTH * _SECONDS_PER_HOUR
    return _not_negative(tokens_per_s, "tokens_per_s") * seconds * _share(utilization)


def usd_per_request(
    input_usd_per_million: float, output_usd_per_million: float, input_tokens: float, output_tokens: float
) -> float:
    """What an API asks for one request, from its prices in USD per million tokens and the request's lengths."""
    asked = _not_negative(input_usd_per_million, "input_usd_per_million") * input_tokens
    asked += _not_negative(output_usd_per_million, "output_usd_per_million") * output_tokens
    return asked / 1e6


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The month at which a stack and an API cost the same: requests, their tokens, and how busy the stack must be.

    `utilization` above 1 means that the stack cannot serve so many: the API stays cheaper.
    """

    requests_per_month: float
    input_tokens_per_month: float
    output_tokens_per_month: float
    utilization: float

    @property
    def is_reachable(self) -> bool:
        """The stack can serve the requests at which it costs no more than the API."""
        return self.utilization <= 1


def break_even_with_api(
    usd_per_month: float,
    output_tokens_per_s: float,
    input_usd_per_million: float,
    output_usd_per_million: float,
    input_tokens: float,
    output_tokens: float,
) -> BreakEven | None:
    """Where a stack of USD per month meets an API price, for requests of the given lengths; None if the API is free.

    `output_tokens_per_s` is what the whole stack gives, at the same lengths.
    """
    asked = usd_per_request(input_usd_per_million, output_usd_per_million, input_tokens, output_tokens)
    if asked == 0:
        return None
    requests = _not_negative(usd_per_month, "usd_per_month") / asked
    capacity = tokens_per_month(_positive(output_tokens_per_s, "output_tokens_per_s"))
    needed = requests * _positive(output_tokens, "output_tokens")
    return BreakEven(requests, requests * input_tokens, needed, needed / capacity)


def power_usd_per_month(watts: float, usd_per_kwh: float, utilization: float = 1.0) -> float:
    """USD of electricity for 730 hours, from W when busy and USD per kWh; idle draw is not counted."""
    kwh = _not_negative(watts, "watts") / 1000 * HOURS_PER_MONTH * _share(utilization)
    return kwh * _not_negative(usd_per_kwh, "usd_per_kwh")


def months_to_buy(purchase_usd: float, rent_usd_per_month: float, power_usd_per_month: float = 0.0) -> float | None:
    """Months after which a bought card has cost less than rent; None when its power alone costs as much as the rent."""
    saved = _not_negative(rent_usd_per_month, "rent_usd_per_month") - power_usd_per_month
    return _not_negative(purchase_usd, "purchase_usd") / saved if saved > 0 else None


def _positive(number: float, name: str) -> float:
    if not number > 0:
        raise ValueError(f"{name} must be above 0, not {number}")
    return number


def _not_negative(number: float, name: str) -> float:
    if not number >= 0:
        raise ValueError(f"{name} must not be negative, not {number}")
    return number


def _share(number: float) -> float:
    if not 0 < number <= 1:
        raise ValueError(f"utilization must be above 0 and at most 1, not {number}")
    return number
