"""The plan is the cheapest by price per useful core, and says what it leaves out and why."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random

import pytest

from cahlib.core.errors import ConfigError, RunError
from cahlib.swarm.planner import (
    MAX_SPREAD,
    ServerLimits,
    choose_offers,
    core_price,
    plan_servers,
    useful_cores,
)
from cahlib.swarm.provider import DenialReason, Denied, Offer, Server
from cahlib.swarm.provisioning import Provisioner


def offer(type, location, cores, hourly, **more):
    values = {"memory": 2 * cores, "architecture": "x86"} | more
    return Offer(type=type, location=location, cores=cores, hourly=hourly, **values)


@dataclass
class Catalogue:
    """An account in memory, with so much in stock and a limit, which it tells to nobody before."""

    name: str
    stock: dict[Offer, int]
    limit: int = 1000
    cores: int = 100_000
    made: list[Offer] = field(default_factory=list)

    def check(self):
        pass

    def offers(self):
        return list(self.stock)

    def servers(self, labels):
        return []

    def create(self, wanted, spec):
        if len(self.made) >= self.limit:
            raise Denied(DenialReason.LIMIT, f"{self.name}: server limit.")
        if sum(each.cores for each in self.made) + wanted.cores > self.cores:
            raise Denied(DenialReason.CORES, f"{self.name}: core limit.")
        if self.made.count(wanted) >= self.stock[wanted]:
            raise Denied(DenialReason.STOCK, f"{self.name}: no stock.")
        self.made.append(wanted)
        return Server(
            id=len(self.made),
            name=spec.name,
            address="",
            type=wanted.type,
            location=wanted.location,
            status="running",
            labels=spec.labels,
            created=0,
        )


def drawn(random, sizes):
    """A catalogue: types of these sizes in places, at prices that differ by less than thrice."""
    found = {}
    for number in range(random.randint(1, 3)):
        cores, base = random.choice(sizes), random.uniform(1, 1.4)
        for place in random.sample(("fsn1", "nbg1", "ash"), random.randint(1, 2)):
            price = cores * base * random.choice((1, 1, 1.1, 1.3))
            found[offer(f"t{number}", place, cores, price)] = random.randint(0, 3)
    return found


def cheapest_nodes(catalogues, nodes):
    """By trying all: the least sum of the prices per core of as many servers as there can be."""
    units = [
        (number, core_price(each), each)
        for number, one in enumerate(catalogues)
        for each, count in one.stock.items()
        for _ in range(min(count, nodes))
    ]
    room = sum(min(one.limit, sum(one.stock.values())) for one in catalogues)
    sets = itertools.combinations(units, min(nodes, room))
    fit = (
        sum(each for _, each, _ in chosen)
        for chosen in sets
        if all(
            sum(number == own for own, _, _ in chosen) <= one.limit
            for number, one in enumerate(catalogues)
        )
    )
    return min(fit)


@pytest.mark.parametrize("spread", [1, MAX_SPREAD])
def test_servers_cost_what_the_best_of_all_choices_costs_with_stock_and_limits(spread):
    random, found = Random(19), 0
    while found < 200:
        pair = [
            Catalogue(f"account {n}", drawn(random, (8, 12)), random.randint(0, 3)) for n in (1, 2)
        ]
        nodes, said = random.randint(1, 4), []
        if not any(one.limit and any(one.stock.values()) for one in pair):
            continue
        planned = replace(plan_servers(pair, ServerLimits(nodes=nodes)), spread=spread)
        Provisioner("r1", planned, lambda name: "", said.append).fill()
        made = [each for one in pair for each in one.made]
        best = cheapest_nodes(pair, nodes)
        paid = sum(map(core_price, made))
        assert best * 0.999 < paid < best * (1.001 if spread == 1 else MAX_SPREAD), (pair, nodes)
        short = f"continuing with {len(made)} of {nodes} servers."
        assert (short in said) == (len(made) < nodes)
        found += 1


def cheapest_cores(offers, cores):
    """By trying all: the least price of so many cores."""
    counts = [range(math.ceil(cores / useful_cores(each)) + 1) for each in offers]
    return min(
        sum(n * each.hourly for n, each in zip(many, offers, strict=True))
        for many in itertools.product(*counts)
        if sum(n * useful_cores(each) for n, each in zip(many, offers, strict=True)) >= cores
    )


def test_cores_cost_what_the_best_of_all_choices_costs():
    random = Random(20)
    for _ in range(200):
        offers, cores = list(drawn(random, (1, 2, 4, 8, 16)))[:4], random.randint(1, 12)
        options = [("account", each) for each in offers]
        chosen = [each for _, each in choose_offers(options, ServerLimits(cores=cores), spread=1)]
        assert sum(map(useful_cores, chosen)) >= cores
        least = cheapest_cores(offers, cores)
        assert sum(each.hourly for each in chosen) == pytest.approx(least), (offers, cores)
        spread = [each for _, each in choose_offers(options, ServerLimits(cores=cores))]
        assert sum(each.hourly for each in spread) <= MAX_SPREAD * least + 1e-9


def test_a_core_without_memory_for_a_scraper_is_of_no_use():
    assert useful_cores(offer("x", "fsn1", 16, 1, memory=32)) == 16
    assert useful_cores(offer("x", "fsn1", 16, 1, memory=4)) == 10
    assert useful_cores(offer("x", "fsn1", 1, 1, memory=2)) == 1
    assert useful_cores(offer("x", "fsn1", 1, 1, memory=0.5)) == 0
    assert (
        useful_cores(offer("x", "fsn1", 96, 1, memory=384)) == 50
    )  # its service has no more ports


EU = [offer("cx53", place, 16, 0.028) for place in ("fsn1", "nbg1", "hel1")]
SMALL = [offer("cx23", place, 2, 0.006) for place in ("fsn1", "nbg1")]
FAR = [offer("cpx11", "ash", 2, 0.0112), offer("cpx51", "sin", 16, 0.2)]


def test_a_swarm_is_spread_over_places_that_cost_nearly_the_same_and_over_no_other():
    near = offer("cx53", "nbg1", 16, 0.028 * 1.14)
    one = Catalogue("account 1", dict.fromkeys([*EU[::2], near, *SMALL, *FAR], 9))
    found = plan_servers([one], ServerLimits(nodes=6))
    assert Counter(each.location for each in found.first) == {"fsn1": 2, "nbg1": 2, "hel1": 2}
    assert {each.type for each in found.first} == {"cx53"} and found.cores() == 96
    dear = replace(near, hourly=0.028 * 1.16)
    one = Catalogue("account 1", dict.fromkeys([*EU[::2], dear, *SMALL, *FAR], 9))
    assert Counter(each.location for each in plan_servers([one], ServerLimits(nodes=6)).first) == {
        "fsn1": 3,
        "hel1": 3,
    }


def test_a_replacement_comes_to_where_the_swarm_is_thin():
    one = Catalogue("account 1", dict.fromkeys(EU, 9))
    left = [EU[0], EU[2]]
    [(_, fresh)] = plan_servers([one], ServerLimits(nodes=3)).offers_to_order(
        [("account 1", o) for o in EU], left, 9
    )
    assert fresh == EU[1]


def test_for_cores_as_many_servers_as_is_cheapest_are_planned():
    one = Catalogue("account 1", dict.fromkeys([*EU, *SMALL, *FAR], 9))
    found = plan_servers([one], ServerLimits(cores=18))
    assert [each.type for each in found.first] == ["cx53", "cx23"]
    assert found.hourly() == pytest.approx(0.034) and found.cores() == 18


def test_where_the_best_does_not_fit_the_ceiling_smaller_ones_are_planned():
    one = Catalogue("account 1", dict.fromkeys([*EU, *SMALL], 9))
    assert {
        each.type for each in plan_servers([one], ServerLimits(nodes=4, max_cost=0.03)).first
    } == {"cx23"}
    for_hours = ServerLimits(nodes=4, max_cost=0.2, hours=8)  # 4 cx53 would end it after one hour
    assert {each.type for each in plan_servers([one], for_hours).first} == {"cx23"}
    with pytest.raises(ConfigError, match="4 nodes costs EUR 0.0240, .* which 0.18 is spent"):
        plan_servers([one], ServerLimits(nodes=4, max_cost=0.2, spent=0.18))


def test_at_a_limit_of_cores_smaller_servers_are_tried_and_what_is_missing_is_said():
    one, said = Catalogue("account 1", dict.fromkeys([*EU, *SMALL], 9), cores=20), []
    Provisioner(
        "r1", plan_servers([one], ServerLimits(nodes=4)), lambda name: "", said.append
    ).fill()
    assert [each.type for each in one.made] == ["cx53", "cx23", "cx23"]
    assert said[-1] == "continuing with 3 of 4 servers."
    assert len([each for each in said if "core limit" in each]) == 2


def test_the_plan_shows_what_it_leaves_out_and_why():
    others = [
        offer("cax41", "fsn1", 16, 0.02, architecture="arm"),
        offer("cx43", "fsn1", 8, 0.013, unavailable="sold out"),
        offer("old", "fsn1", 16, 0.01, unavailable="being withdrawn"),
        offer("tiny", "fsn1", 1, 0.001, memory=1),
    ]
    one = Catalogue("account 1", dict.fromkeys([*EU, *SMALL, *FAR, *others], 9))
    lines = plan_servers([one], ServerLimits(nodes=4)).table().splitlines()
    assert lines[0].split()[:6] == ["nodes", "type", "place", "cores", "GB", "EUR/h"]
    assert [line.split()[0] for line in lines[1:4]] == ["2", "1", "1"]
    assert lines[1].split()[1:] == ["cx53", "fsn1", "16", "32", "0.0280", "1.75"]
    told = {line.split()[1]: line for line in lines[4:-1]}
    for type, why in {
        "cax41": "arm64: the language detector (pycld2) has no wheel",
        "cx43": "sold out",
        "old": "being withdrawn",
        "tiny": "too little memory (at least 2 GB)",
        "cx23": "1.7 times the price per core",
        "cpx51": "7.1 times the price per core",
    }.items():
        assert told[type].endswith(why), told[type]
    assert lines[-1].startswith("EUR 0.1120 an hour for 64 cores, with IPv4 and tax")


def test_arm64_is_planned_where_its_wheels_are_brought():
    arm = offer("cax41", "fsn1", 16, 0.02, architecture="arm")
    one = Catalogue("account 1", {arm: 9})
    with pytest.raises(RunError, match=r"now \(cax41: arm64: the .* has no wheel\); try again"):
        plan_servers([one], ServerLimits(nodes=1))
    both = Catalogue("account 1", {arm: 9, **dict.fromkeys(EU, 9)})
    with pytest.raises(ConfigError, match=r"'cax41' is not suitable \(arm64: .*from cx53\."):
        plan_servers([both], ServerLimits(nodes=1, server_type="cax41"))
    assert plan_servers([one], ServerLimits(nodes=1, arm=True)).first == [arm]


def test_where_nothing_fits_the_reasons_are_said():
    sold = [offer(type, "fsn1", 2, 0.01, unavailable="sold out") for type in ("cx23", "cx33")]
    small = offer("tiny", "fsn1", 1, 0.001, memory=1)
    with pytest.raises(RunError, match=r"\(cx23, cx33: sold out; tiny: too little memory .*; try"):
        plan_servers(
            [Catalogue("account 1", dict.fromkeys([*sold, small], 9))], ServerLimits(nodes=1)
        )


def test_the_plan_says_what_a_crash_costs_before_the_head_can_see_it():
    one = Catalogue("account 1", dict.fromkeys(EU, 9))
    told = plan_servers([one], ServerLimits(nodes=1, watchdog=60)).crash_note()
    assert "deletes the servers 60 minutes later; before the head is up, they keep costing" in told
    assert "costing EUR 0.0280 an hour until somebody" in told


def test_a_currency_is_shown_as_it_is_and_two_are_not_compared():
    dollars = Catalogue("account 1", {replace(each, currency="USD"): 9 for each in EU})
    planned = plan_servers([dollars], ServerLimits(nodes=1, max_cost=1))
    assert "USD/h" in planned.table() and "At most USD 1.00" in planned.terms()
    with pytest.raises(ConfigError, match="pay in EUR and USD"):
        plan_servers([dollars, Catalogue("account 2", dict.fromkeys(EU, 9))], ServerLimits(nodes=1))
