"""Money per token, query and month, against sums done by hand; and the cost report built from them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from modelstacks import economics, spec
from modelstacks.catalog import Catalog, measured
from modelstacks.catalog.measured import ApiPrice, Card, Market, Power
from modelstacks.cli import costs
from modelstacks.plan import Plan, plan
from modelstacks.throughput import Throughput

CATALOG = Catalog()
MARKET = Market(
    api=(
        ApiPrice(
            model="mistral-nemo-12b", provider="dear", input_usd_per_million=1, output_usd_per_million=2, source="t"
        ),
        ApiPrice(
            model="mistral-nemo-12b", provider="fair", input_usd_per_million=0.5, output_usd_per_million=2, source="t"
        ),
    ),
    cards={"l4": Card(usd=2000, usd_source="t", watts=100, watts_source="t")},
    power=Power(usd_per_kwh=0.1, source="t"),
)


def planned(**keys: object) -> Plan:
    """A plan of Mistral NeMo on one L4 whose speed and price are round numbers, whatever the catalogue says."""
    asked = spec.parse({"model": "mistral-nemo-12b", "gpu": "l4", "quantization": "fp8"} | keys, CATALOG, source="test")
    decided = plan(asked, CATALOG)
    return replace(decided, throughput=Throughput(400.0, 16, 1000, 200), cost=replace(decided.cost, usd_per_hour=0.72))


@pytest.mark.parametrize(
    ("usd_per_hour", "tokens_per_s", "million"),
    [
        # The article's L4: 0.44 / 3600 / 50 × 1000 is $0.00244 per 1K tokens, not $0.0006.
        (0.44, 50, 2.4444),
        (3.6, 1000, 1.0),
        (0.0, 10, 0.0),
    ],
)
def test_a_million_tokens(usd_per_hour: float, tokens_per_s: float, million: float) -> None:
    """USD per hour ÷ tokens per hour × a million."""
    assert economics.usd_per_million_tokens(usd_per_hour, tokens_per_s) == pytest.approx(million, abs=1e-4)


def test_half_a_busy_month_doubles_the_price_of_a_token() -> None:
    """Idle hours are paid too."""
    busy, half = (economics.usd_per_million_tokens(3.6, 1000, share) for share in (1.0, 0.5))
    assert half == 2 * busy == 2.0


@pytest.mark.parametrize(
    ("gpus", "usd_per_hour", "month"),
    # The article's table: L4, H100 PCIe, two of them, A100 PCIe, B200; and 8 × H100 SXM, where it says 15,728.
    [(1, 0.44, 321), (1, 1.99, 1453), (2, 1.99, 2905), (1, 1.19, 869), (1, 5.98, 4365), (8, 2.69, 15710)],
)
def test_a_month_is_gpus_times_price_times_730(gpus: int, usd_per_hour: float, month: float) -> None:
    """The cost formula that the article's ranking table does not follow."""
    assert economics.usd_per_month(gpus * usd_per_hour) == pytest.approx(month, abs=0.5)


def test_queries_per_second_and_what_a_hundred_of_them_take() -> None:
    """312 tokens/s are 1.2 answers of 256 tokens a second; 100 such answers need 25,600 tokens/s."""
    assert economics.queries_per_second(312, 256) == pytest.approx(1.21875)
    assert economics.queries_per_second(25600, 256) == 100


def test_tokens_of_a_month() -> None:
    """1000 tokens/s for 730 hours are 2.628 billion."""
    assert economics.tokens_per_month(1000) == 2_628_000_000
    assert economics.tokens_per_month(1000, 0.25) == 657_000_000


def test_break_even_with_an_api_prices_input_and_output_apart() -> None:
    """$730 a month; a request of 1000+200 tokens costs 1000 × 0.5/M + 200 × 2/M = $0.0009."""
    meets = economics.break_even_with_api(730, 100, 0.5, 2.0, 1000, 200)
    assert meets is not None
    assert meets.requests_per_month == pytest.approx(811_111.11)
    assert meets.output_tokens_per_month == pytest.approx(162_222_222, rel=1e-6)
    assert meets.input_tokens_per_month == pytest.approx(811_111_111, rel=1e-6)
    # 100 tokens/s × 730 × 3600 = 262.8 million output tokens.
    assert meets.utilization == pytest.approx(0.61728, abs=1e-5)
    assert meets.is_reachable


def test_a_stack_that_cannot_serve_enough_never_breaks_even() -> None:
    """The same stack at a tenth of the speed would have to be busy for six months a month."""
    meets = economics.break_even_with_api(730, 10, 0.5, 2.0, 1000, 200)
    assert meets is not None
    assert meets.utilization == pytest.approx(6.1728, abs=1e-4)
    assert not meets.is_reachable
    assert economics.break_even_with_api(730, 10, 0, 0, 1000, 200) is None


@given(
    st.floats(1, 1e5), st.floats(1, 1e5), st.floats(0.01, 100), st.floats(0.01, 100), st.integers(1, 10**5),
    st.integers(1, 10**5),
)  # fmt: skip
def test_at_break_even_both_cost_the_same(
    month: float, rate: float, asked_in: float, asked_out: float, given_in: int, given_out: int
) -> None:
    """Requests × what the API asks for one of them is the month's rent."""
    meets = economics.break_even_with_api(month, rate, asked_in, asked_out, given_in, given_out)
    assert meets is not None
    paid = meets.requests_per_month * economics.usd_per_request(asked_in, asked_out, given_in, given_out)
    assert math.isclose(paid, month, rel_tol=1e-9)


def test_a_bought_rtx_4090_against_a_rented_l4() -> None:
    """The article says 12 months: 1600 ÷ 321.20 is 4.98, and 5.88 with 450 W at $0.15 per kWh all the time."""
    rent = economics.usd_per_month(0.44)
    power = economics.power_usd_per_month(450, 0.15)
    assert power == pytest.approx(49.275)
    assert economics.months_to_buy(1600, rent) == pytest.approx(4.981, abs=1e-3)
    assert economics.months_to_buy(1600, rent, power) == pytest.approx(5.884, abs=1e-3)
    assert economics.months_to_buy(1600, 49, power) is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: economics.usd_per_million_tokens(1, 0),
        lambda: economics.usd_per_million_tokens(-1, 1),
        lambda: economics.usd_per_million_tokens(1, 1, 1.5),
        lambda: economics.queries_per_second(1, 0),
        lambda: economics.break_even_with_api(1, 0, 1, 1, 1, 1),
        lambda: economics.usd_per_month(math.nan),
        lambda: economics.tokens_per_month(1, 0),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_named(wrong: object) -> None:
    """Nothing divides by zero or answers with a negative price."""
    with pytest.raises(ValueError, match=r"must|utilization"):
        wrong()  # type: ignore[operator]


def test_a_cost_line_counts_all_replicas() -> None:
    """$0.72/h and 400 tokens/s: $0.50 per million, 2 answers of 200 tokens a second; replicas share the price."""
    line = costs.line("nemo", planned(), MARKET)
    assert line.usd_per_million_output_tokens == pytest.approx(0.5)
    assert line.queries_per_s == 2
    two = costs.line("nemo", planned(replicas=2), MARKET)
    assert two.output_tokens_per_s == 800
    assert two.usd_per_million_output_tokens == pytest.approx(0.25)


def test_a_cost_line_meets_the_cheapest_api_and_the_card() -> None:
    """$525.60 a month; 1000+200 tokens at the cheaper API cost $0.0009; the card saves 525.60 − 7.30 a month."""
    line = costs.line("nemo", planned(), MARKET)
    assert line.api is not None
    assert line.api.provider == "fair"
    assert line.break_even is not None
    assert line.break_even.requests_per_month == pytest.approx(584_000)
    # 584,000 × 200 of 400 × 2,628,000 tokens.
    assert line.break_even.utilization == pytest.approx(1 / 9)
    assert line.months_to_buy == pytest.approx(2000 / 518.3, abs=1e-3)


def test_a_refused_plan_has_no_figures_and_asks_for_exit_code_3() -> None:
    """DeepSeek R1 in FP8 does not fit eight H100; the other lines are answered all the same."""
    asked = spec.parse(
        {"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": "8", "quantization": "fp8"}, CATALOG, source="t"
    )
    lines = [costs.line("nemo", planned(), MARKET), costs.line("r1", plan(asked, CATALOG), MARKET)]
    assert costs.refused(lines)
    assert not costs.refused(lines[:1])
    fits, refused = costs.as_json(lines)
    assert fits["usd_per_million_output_tokens"] == 0.5
    assert refused["fits"] is False
    assert refused["refusals"][0]["code"] == "weights-too-large"
    for key in ("usd_per_million_output_tokens", "output_tokens_per_s", "queries_per_s", "throughput", "break_even"):
        assert refused[key] is None


def test_the_table_says_what_it_assumes() -> None:
    """Method, requests at once, lengths, prices with source, and the month of 730 hours."""
    console = Console(width=200, record=True, highlight=False)
    costs.show([costs.line("nemo", planned(), MARKET)], console)
    text = console.export_text()
    for words in (
        "roofline",
        "16 requests of 1000+200 tokens at once",
        "fair asks $0.5 in, $2 out",
        "730 hours",
        "11% busy",
    ):
        assert words in text


def test_the_shipped_prices_speak_of_models_and_cards_with_a_source() -> None:
    """Every row of templates/api-prices.yaml loads; the article's own card is there."""
    market = measured.market()
    assert market.cards["rtx-4090"].usd == 1600
    assert {"deepseek-r1", "mistral-nemo-12b", "qwen-2.5-72b"} <= {price.model for price in market.api}
    assert all(price.date is not None or "article" in price.source for price in market.api)
