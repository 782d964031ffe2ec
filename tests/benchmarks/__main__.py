"""Run the benchmarks, print their figures in one table and keep them in ``figures.json``.

python -m tests.benchmarks [bench_wat bench_images …]
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.common import FIGURES, ROOT
from tests.benchmarks.figures import PATH, Figures, read

#: Further runs of a benchmark: what it is told, and its environment.
RUNS: dict[str, list[tuple[list[str], dict[str, str]]]] = {
    "bench_images": [
        ([], {"CAH_CONSENT": "headers"}),
        (["--https", "--connections", "512"], {"CAH_CONSENT": "headers"}),
        (["--no-peer"], {}),
    ]
}


def main(names: list[str]) -> None:
    every = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    found: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures"
        for name in names or every:
            for told, environment in RUNS.get(name, [([], {})]):
                command = [sys.executable, "-m", f"tests.benchmarks.{name}", *told]
                given = {**os.environ, **environment, FIGURES: str(file)}
                subprocess.run(command, check=True, cwd=ROOT, env=given)
        for line in file.read_text().splitlines() if file.exists() else ():
            found |= json.loads(line)
    where = conditions()
    known = {**read(), **{name: {**where, **values} for name, values in found.items()}}
    PATH.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"\n{where['machine']}, {where['date']}, {where['commit']}")
    for name, values in sorted(found.items()):
        print(f"{name:24}", ", ".join(f"{what} {value:g}" for what, value in values.items()))


def conditions() -> dict[str, Any]:
    """Where, when and of which code figures are measured."""
    about = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in about if line.startswith("model name")]
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores, {(models or [platform.machine()])[0]}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
