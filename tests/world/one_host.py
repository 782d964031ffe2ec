"""Images of one host, fetched from a web of its answers."""

from cahlib.core.config import Download
from cahlib.core.records import Evidence, Stage, Stats
from cahlib.demo.web import Answer, Web
from cahlib.fetch.images import fetch_images
from tests.world.pictures import candidate, picture

JPEG = picture()
HOST = "http://a.example"


def fetch(answers, *paths, **settings):
    """What becomes of some images of one host: their paths, the stats, evidence, what was asked."""
    pictures = {f"{HOST}{path}": Answer(body=JPEG) for path in paths}
    stats, evidence = Stats(), Evidence()
    with Web({**pictures, **{f"{HOST}{path}": each for path, each in answers.items()}}) as web:
        options = Download(**{"replay": web.address, **settings})
        found = fetch_images(
            [candidate(f"{HOST}{path}", n) for n, path in enumerate(paths)],
            options,
            stats,
            evidence=evidence,
        )
        kept = sorted(image.candidate.url.removeprefix(HOST) for image in found)
    assert stats.unaccounted(Stage.FETCH) == 0
    return kept, stats.dropped, evidence, [each.url.removeprefix(HOST) for each in web.requests]
