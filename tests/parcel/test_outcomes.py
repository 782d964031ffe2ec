"""The outcomes in a parcel: all of them come back, and none that contradicts its counts."""

import gzip
import json
from dataclasses import replace

import pytest

from cahlib.core.errors import ShardError
from cahlib.core.lists import md5_digest
from cahlib.core.records import DropReason, Evidence, Outcome, Shard, Stage, Stats
from cahlib.parcel import parcel as parcels
from cahlib.parcel.outcomes import PackedOutcomes
from tests.world.pictures import candidate, image

SHARD = Shard(id="s-0", url="https://data.example/1.wat.gz", half=0)
SOUND = [
    Outcome(0, None, image(0).candidate, 200, "http://b.example/é.jpg", 120, 40_000, 2),
    Outcome(1, DropReason.TIMEOUT, candidate("http://a.example/1.jpg", 1, "Zwölf 😀"), ms=30_000),
    Outcome(2, DropReason.KNOWN_HARM, None),
    Outcome(3, DropReason.HTTP_4XX, candidate("http://a.example/3.jpg", 3, "one"), 404, attempt=1),
]


def counts(outcomes):
    stats = Stats()
    stats.entered[Stage.FETCH] = len(outcomes)
    stats.left[Stage.FETCH] = sum(each.reason is None for each in outcomes)
    stats.dropped.update(each.reason for each in outcomes if each.reason)
    return stats


def packed(outcomes):
    log = PackedOutcomes()
    for each in outcomes:
        log.add(each)
    return log


def written(folder, log, stats):
    evidence = Evidence(outcomes=log)
    return parcels.write_parcel([image(0)], SHARD, folder, stats=stats, evidence=evidence)


def test_they_come_back_in_order_however_they_came(tmp_path):
    harm = candidate("http://harm.example/secret.jpg", 2, "what nobody may find again")
    came = [SOUND[3], SOUND[0], SOUND[2]._replace(candidate=harm, status=200), SOUND[1]]
    parcel = written(tmp_path, packed(came), counts(SOUND))
    assert list(parcels.unpack_outcomes(parcel)) == SOUND
    assert list(parcels.read_images(parcel)) == [image(0)]
    assert parcels.find_parcel(tmp_path, SHARD) == parcel
    assert b"secret" not in gzip.decompress(packed(came).packed())


def test_a_parcel_may_have_none(tmp_path):
    parcel = parcels.write_parcel([image(0)], SHARD, tmp_path, stats=counts(SOUND))
    assert list(parcels.unpack_outcomes(parcel)) == []


def test_text_that_cannot_be_encoded_is_stored_with_question_marks(tmp_path):
    url, text = "http://a.example/\udce9.jpg", "half a pair \ud83d"
    uid = md5_digest(url + text).hex()
    strange = replace(candidate("http://a.example/"), uid=uid, url=url, text=text)
    parcel = written(tmp_path, packed([Outcome(0, DropReason.DNS, strange)]), Stats())
    parcel.stats.entered[Stage.FETCH] = parcel.stats.dropped[DropReason.DNS] = 1
    (found,) = parcels.unpack_outcomes(parcel)
    assert found.candidate.url == "http://a.example/?.jpg"
    assert found.candidate.text == "half a pair ?" and found.candidate.uid == strange.uid


def lines(outcomes=SOUND):
    return gzip.decompress(packed(outcomes).packed()).splitlines()


def changed(line, at, value):
    values = json.loads(line)
    values[at] = value
    return json.dumps(values).encode()


HARMFUL = {
    "one too few": lambda all: all[:-1],
    "one too many": lambda all: [*all, all[-1]],
    "another order": lambda all: [all[1], all[0], *all[2:]],
    "another reason": lambda all: [*all[:3], changed(all[3], 1, "dns")],
    "a reason of no stage of scraping": lambda all: [*all[:3], changed(all[3], 1, "dissimilar")],
    "an unknown reason": lambda all: [*all[:3], changed(all[3], 1, "because")],
    "a negative time": lambda all: [changed(all[0], 5, -1), *all[1:]],
    "too many bytes": lambda all: [changed(all[0], 6, 2**63), *all[1:]],
    "a status that is none": lambda all: [changed(all[0], 3, 70_000), *all[1:]],
    "no candidate": lambda all: [*all[:3], changed(all[3], 2, None)],
    "a link to what must not be found": lambda all: [
        *all[:2], changed(all[2], 2, json.loads(all[3])[2]), all[3],
    ],
    "another's key": lambda all: [all[0].replace(b'"text":"', b'"text":"x'), *all[1:]],
    "no JSON": lambda all: [b"hello", *all[1:]],
    "nothing": lambda all: [],
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMFUL)
def test_what_contradicts_its_counts_is_damage(tmp_path, kind):
    class Log:
        def packed(self):
            return gzip.compress(b"".join(line + b"\n" for line in HARMFUL[kind](lines())))

    parcel = written(tmp_path, Log(), counts(SOUND))
    with pytest.raises(ShardError, match="has to be scraped again"):
        list(parcels.unpack_outcomes(parcel))


@pytest.mark.parametrize("data", [b"", b"no gzip", packed(SOUND).packed()[:-30]])
def test_a_damaged_file_is_damage(tmp_path, data):
    class Log:
        def packed(self):
            return data

    with pytest.raises(ShardError, match="outcomes"):
        list(parcels.unpack_outcomes(written(tmp_path, Log(), counts(SOUND))))
