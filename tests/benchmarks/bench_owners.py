"""What the question for robots.txt and tdmrep.json costs, and what is wasted on hosts that refuse.

    python -m tests.benchmarks.bench_owners [--hosts 1000] [--small]

A loopback web of hosts with two images each: a third has no robots.txt, a third allows all, a third
refuses all. Given are seconds, requests and bytes of bodies by profile of consent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from cahlib.core.config import Download
from cahlib.core.records import DropReason, Evidence, Stats
from cahlib.demo.web import Answer, Web
from cahlib.fetch.images import fetch_images
from tests.benchmarks.common import parser
from tests.world.pictures import candidate, picture

RULES = (None, b"User-agent: *\nAllow: /\n", b"User-agent: *\nDisallow: /\n")


def main(arguments: Sequence[str]) -> None:
    hosts = parser(__doc__, arguments, hosts=(1000, 9)).parse_args(arguments).hosts
    jpeg = picture()
    answers = {f"/{n}.jpg": Answer(body=jpeg) for n in range(2)}
    for host in range(hosts):
        if rules := RULES[host % 3]:
            answers[f"http://h{host}.example/robots.txt"] = Answer(body=rules)
    print(
        f"{'consent':10}{'seconds':>9}{'requests':>10}{'images':>8}{'refused':>9}{'wasted kB':>11}"
    )
    for consent in ("headers", "research", "strict"):
        with Web(answers) as web:
            stats, start = Stats(), time.perf_counter()
            options = Download(replay=web.address, consent=consent, min_bytes=0, per_second=0)
            urls = (f"http://h{n // 2}.example/{n % 2}.jpg" for n in range(2 * hosts))
            found = fetch_images(
                (candidate(url, n) for n, url in enumerate(urls)),
                options,
                stats,
                evidence=Evidence(),
            )
            kept = sum(1 for _ in found)
            seconds = time.perf_counter() - start
            refusing = [r for r in web.requests if int(r.url[8 : r.url.index(".")]) % 3 == 2]
            wasted = sum(
                len(jpeg) if request.url.endswith(".jpg") else len(RULES[2])
                for request in refusing
                if not request.url.endswith("tdmrep.json")
            )
            refused = stats.dropped[DropReason.OPTED_OUT]
            assert refused == (0 if consent == "headers" else 2 * (hosts // 3)), stats
            assert kept + refused == 2 * hosts, stats
            print(
                f"{consent:10}{seconds:9.2f}{len(web.requests):10,}{kept:8,}"
                f"{refused:9,}{wasted / 1000:11,.0f}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
