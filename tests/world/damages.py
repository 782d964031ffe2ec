"""Ways in which a finished dataset or its run directory is damaged."""

import dataclasses
import shutil
from pathlib import Path

from cahlib.dataset.manifest import encode_manifest, manifest_path, read_manifests


def content(folder: Path) -> dict[str, bytes]:
    """The files of the shards; what tells of the tars follows those that are whole."""
    about = ("README.md", "nshards.txt", "sizes.json")
    found = (p for p in folder.rglob("*") if p.is_file() and p.name not in about)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.relative_to(folder).parts[0] not in ("run", "report.html", "dataset.json")
    }


def lose_ledger(folder):
    (folder / "run/ledger.sqlite").unlink()


def lose_run(folder):
    shutil.rmtree(folder / "run")


def empty_ledger(folder):
    (folder / "run/ledger.sqlite").write_bytes(b"")


def zero_ledger(folder):
    path = folder / "run/ledger.sqlite"
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(len(data) - 4096))


def garble_ledger(folder):
    (folder / "run/ledger.sqlite").write_bytes(b"garbage" * 1000)


def spoil_job(folder):
    (folder / "run/job.json").write_bytes(b"{")


def flip_job(folder):
    """Another setting has become of one, and another output of the output."""
    path = folder / "run/job.json"
    path.write_text(path.read_text().replace('"strict"', '"headers"').replace("output", "outpuu"))


def lose_list(folder):
    (folder / "dataset.json").unlink()


def lose_list_and_run(folder):
    lose_list(folder)
    lose_run(folder)


def become_old(folder):
    """As of a cahlib that knew no dataset.json."""
    lose_list_and_run(folder)
    for manifest in list(read_manifests(folder)):
        old = encode_manifest(dataclasses.replace(manifest, settings=""))
        (folder / manifest_path(manifest.shard.id)).write_bytes(old)


LOSSES = [
    lose_ledger, lose_run, empty_ledger, zero_ledger, garble_ledger, lose_list, lose_list_and_run,
    become_old, spoil_job, flip_job,
]  # fmt: skip


def files_of(folder, at=0):
    """The files of one shard."""
    manifest = list(read_manifests(folder))[at]
    return [folder / path for path in (manifest_path(manifest.shard.id), *manifest.files)]


def cut_tar(folder):
    path = next(path for path in files_of(folder) if path.suffix == ".tar")
    path.write_bytes(path.read_bytes()[:-512])


def lose_table(folder):
    next(path for path in files_of(folder) if path.suffix == ".parquet").unlink()


def spoil_manifest(folder):
    files_of(folder)[0].write_bytes(b"{}")


def lose_manifest(folder):
    files_of(folder)[0].unlink()


def lose_shard(folder):
    for path in files_of(folder):
        path.unlink()


DAMAGES = [cut_tar, lose_table, spoil_manifest, lose_manifest, lose_shard]
