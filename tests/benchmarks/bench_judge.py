"""Images and texts to judged pairs against clip-retrieval 2.45: the same tar, the same weights.

    python -m tests.benchmarks.bench_judge [--samples 512] [--rounds 2] [--no-peer]

ViT-B/32 as OpenAI trained it (QuickGELU), with random weights, on the CPU. The pictures are JPEGs
of 300 to 900 pixels; the texts have as many words as alt texts have, most of them 4 to 15, a few
60. The peer makes embeddings; ours also compares them, applies the safety rules and makes records.
Loading the model is not counted. The peer borrows this environment's torch, so that both compute
alike, but for the bfloat16 of `cahlib.curate.replica`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image as Picture

MODEL = "ViT-B-32-quickgelu"
HOME = Path(__file__).parent.parent.parent / ".bench" / "judge"
PEER = ["clip-retrieval==2.45.0", "transformers<5", "setuptools<81"]
WORDS = (
    "a the of in with and photo image black white red blue house garden beach woman man dog cat "
    "vintage modern wooden table kitchen design wedding summer 2019 new york city car engine "
    "leather shoes dress logo vector illustration map chart recipe chicken salad mountain sunset"
).split()

#: What the peer's process runs. Its model is loaded before, and its own logger measures the time;
#: the CPU seconds leave out its processes that decode.
SCRIPT = """
import json, resource, sys, time
import torch
from all_clip import load_clip
from clip_retrieval import clip_inference
tars, weights, out, name, batch, workers = sys.argv[1:]
model = dict(clip_model=f"open_clip:{name}/{weights}", use_jit=False, clip_cache_path=None)
load_clip(warmup_batch_size=int(batch), **model)
start = time.process_time()
clip_inference(tars, out, input_format="webdataset", num_prepro_workers=int(workers),
               batch_size=int(batch), wds_number_file_per_input_file=10, **model)
said = json.load(open(out + "/stats/0.json"))
said["cpu"] = time.process_time() - start
said["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
said["gpu"] = torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else 0
print("\\n" + json.dumps(said))
"""


def make(tar: Path, count: int) -> None:
    """The samples, as a WebDataset tar of ``<number>.jpg`` and ``<number>.txt``."""
    with tarfile.open(tar, "w") as out:
        for number, (data, text) in enumerate(samples(count)):
            add(out, f"{number:05}.jpg", data)
            add(out, f"{number:05}.txt", text.encode())


def samples(count: int, least: int = 300, most: int = 900) -> Iterator[tuple[bytes, str]]:
    """JPEGs with sides of so many pixels, and their texts."""
    chance = random.Random(0)
    for number in range(count):
        size = chance.randrange(least, most), chance.randrange(least, most)
        rough = Picture.frombytes("RGB", (24, 24), chance.randbytes(24 * 24 * 3))
        grain = Picture.frombytes("RGB", (150, 150), chance.randbytes(150 * 150 * 3))
        picture = Picture.blend(rough.resize(size), grain.resize(size), 0.2)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        words = 60 if number % 40 == 0 else min(2 + int(chance.expovariate(1 / 8)), 40)
        yield file.getvalue(), " ".join(chance.choices(WORDS, k=words))


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def weights(path: Path, name: str = MODEL) -> None:
    """A model as it is before training, always the same."""
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(name).state_dict(), path)


def ours(tar: Path, weights: Path) -> None:
    """Judge all samples, in this process."""
    from cahlib.config import Judge
    from cahlib.curate import clip, pairs
    from cahlib.curate.safety import Safety
    from cahlib.records import Tally

    options = Judge(model=MODEL, pretrained=str(weights), threshold=0.3, device="cpu")
    model = clip.load(options)
    safety = Safety.load("", model)
    start, cpu, worked = time.perf_counter(), time.process_time(), model.worked()
    count = sum(1 for _ in pairs.pairs(read(tar), model, safety, judge=options, tally=Tally()))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    busy = (model.worked() - worked) / wall
    said = {"sample_count": count, "total_duration": wall, "cpu": cpu, "busy": busy}
    print(json.dumps(said))


def read(tar: Path) -> Iterator[Any]:
    """The samples as records."""
    with tarfile.open(tar) as samples:
        while (picture := samples.next()) is not None:
            data = samples.extractfile(picture).read()
            yield record(0, data, samples.extractfile(samples.next()).read().decode())


def record(position: int, data: bytes, text: str) -> Any:
    """A sample as the scraper would hand it on."""
    from cahlib.records import Candidate, Image

    candidate = Candidate(
        uid=hashlib.md5(text.encode()).hexdigest(), position=position, url="", text=text,
        raw_text=None, page="", licence="?", language="en", reliable=True, source="alt",
    )  # fmt: skip
    return Image(
        candidate=candidate, data=data, format="jpg", width=0, height=0, robots="",
        original_width=0, original_height=0, md5="", sha1="", sha256="",
    )  # fmt: skip


def peer() -> Path:
    """A Python with the peer in it."""
    home = HOME / "peer"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        site = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        Path(site.strip(), "torch.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER], check=True)
        (home / "ready").touch()
    return python


def measured(command: list[Any]) -> dict[str, float]:
    """Run one side; samples a second, and what it said."""
    # Waiting threads sleep: on a machine that is not idle, spinning ones cost both sides half.
    quiet = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=quiet)
    if ran.returncode:
        raise SystemExit(ran.stdout + ran.stderr)
    said = json.loads(ran.stdout.strip().splitlines()[-1])
    count = said["sample_count"]
    return {"rate": count / said["total_duration"], "each": said["cpu"] / count, **said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2, help="the best of so many counts")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--ours", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        return ours(*options.ours)
    HOME.mkdir(parents=True, exist_ok=True)
    tar, file = HOME / f"{options.samples}.tar", HOME / "random.pt"
    if not tar.exists():
        make(tar, options.samples)
    if not file.exists():
        weights(file)
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds):
        sides = {"cahlib": [sys.executable, __file__, "--ours", tar, file]}
        if not options.no_peer:
            place = tempfile.mkdtemp()
            sides["clip-retrieval"] = [peer(), "-c", SCRIPT, tar, file, place, MODEL, 32, 1]
        for side, command in sides.items():
            found = measured(command)
            print(
                f"{side}: {found['rate']:.1f} samples/s, {found['each']:.3f} CPU s each", flush=True
            )
            best[side] = max(best.get(side, found), found, key=lambda each: each["rate"])
    print(f"\n{options.samples} pairs, {os.cpu_count()} cores, the best of {options.rounds}")
    print("                samples/s   ours is   CPU s each   ours takes")
    own = best["cahlib"]
    for side, found in best.items():
        faster, cheaper = own["rate"] / found["rate"], own["each"] / found["each"]
        print(f"{side:<16}{found['rate']:9.1f}{faster:9.2f}x{found['each']:13.3f}{cheaper:12.2f}x")
    print(f"our model was busy {own['busy']:.0%} of the time")


if __name__ == "__main__":
    main()
