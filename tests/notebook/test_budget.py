"""A budget in words, and what it pays for."""

import math
import os

import pytest

from cahlib.core import rates
from cahlib.core.config import Job, replace_settings
from cahlib.core.errors import ConfigError
from cahlib.notebook.budget import affordable_cores, fit_to_budget, parse_budget
from cahlib.run.scrapers import plan_job_servers
from tests.world import cloud as clouds


@pytest.mark.parametrize(
    ("text", "money", "hours"),
    [
        ("10 EUR, 3 h", 10, 3),
        ("10€ 3h", 10, 3),
        ("€ 2,50 for 1.5 hours", 2.5, 1.5),
        (" 0.5 euro / 8 hours", 0.5, 8),
        ("EUR 10 in 3 h", 10, 3),
    ],
)
def test_a_budget_is_read_as_people_write_it(text, money, hours):
    budget = parse_budget(text)
    assert (budget.money, budget.hours) == (money, hours)


@pytest.mark.parametrize("text", ["", "10", "10 EUR", "0 EUR, 3 h", "10 EUR, 0 h", "3 h", "-1 3 h"])
def test_what_is_no_budget_gets_a_sentence(text):
    with pytest.raises(ConfigError, match="^budget: write what"):
        parse_budget(text)


def test_no_more_is_paid_for_than_the_money_or_the_model_allows():
    assert affordable_cores(100, price=2.0, money=1.0) == 50
    assert affordable_cores(100, price=2.0, money=100.0) == 100
    assert affordable_cores(100, price=2.0, money=0.01) == 0


@pytest.mark.parametrize("words", ["0.05 EUR, 1 h", "0.3 EUR, 2.5 h", "1000 EUR, 3 h"])
def test_the_servers_of_a_budget_can_be_planned_and_cost_no_more(words, monkeypatch):
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        budget = parse_budget(words)
        jobs = []
        for gpu in (True, False):
            monkeypatch.setattr(rates, "has_gpu", lambda gpu=gpu: gpu)
            jobs.append(
                replace_settings(
                    Job(), **fit_to_budget(replace_settings(Job(), swarm=5), "token", budget)
                )
            )
        plan = plan_job_servers(jobs[0], "token")
    assert all(job.place.swarm == 0 and 1 <= job.place.cores <= 100 for job in jobs)
    assert plan.hourly() * math.ceil(budget.hours) <= budget.money
    assert jobs[1].place.cores < 14 * (os.cpu_count() or 1)  # a CPU judges no more


def test_a_budget_that_pays_for_nothing_says_so(monkeypatch):
    with clouds.serve(clouds.Cloud({"token": clouds.Account()})) as cloud:
        monkeypatch.setenv("HCLOUD_ENDPOINT", cloud.url)
        with pytest.raises(ConfigError, match="does not pay for a core for 9 hours"):
            fit_to_budget(Job(), "token", parse_budget("0.01 EUR, 9 h"))
