"""Launches of kaggle.sh, at stand-ins for Kaggle and the cloud."""

import json
from pathlib import Path

from cahlib.core.config import Job
from cahlib.core.secret_store import secret_path
from cahlib.engine import ticket
from cahlib.engine.cluster import ClusterAddress
from cahlib.kaggle import pack
from cahlib.kaggle.servers import SessionServers
from cahlib.kaggle.service import KaggleAccount
from cahlib.kaggle.session import (
    KaggleSession,
    run_session,
)
from cahlib.swarm import hetzner
from cahlib.swarm.install import SCHEDULER_PORT
from cahlib.swarm.keys import SwarmKeys
from cahlib.swarm.planner import plan_servers
from cahlib.swarm.provisioning import Provisioner
from tests.world import kaggle

HCLOUD = "hcloud-token-of-ada"
SETTINGS = {"nickname": "ada", "contact": "ada@example.org", "crawl": "CC-MAIN-2024-10"}


class Listed(SessionServers):
    """Servers that are made and deleted as in earnest, but never become nodes."""

    def up(self, hours):
        wanted = self._config
        run = self._labels["run"]
        servers = Provisioner(
            run, plan_servers(self._accounts, wanted.limits), lambda name: "", self._report
        )
        servers.prepare("ssh-ed25519 AAAA")
        servers.fill()
        reach = ClusterAddress(
            address=f"tls://192.0.2.1:{SCHEDULER_PORT}",
            keys=SwarmKeys(secret_path(wanted.state, "keys")),
        )
        return ticket.issue_ticket(reach, hours=hours)


class Launch:
    """A launch of kaggle.sh: what it says, and how it ends."""

    def __init__(self, cloud, folder: Path) -> None:
        self.cloud, self.folder, self.said = cloud, folder, []
        notebook = folder / "gpucah.ipynb"
        cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        tagged = cell | {"metadata": {"tags": ["parameters"]}, "source": ["settings = {}"]}
        cells = [cell | {"source": ["import cahlib"]}, tagged]
        notebook.write_text(
            json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        root = Path(__file__).parent.parent.parent
        self.source = pack.KernelSource(
            notebook=notebook, metadata=root / "kaggle-kernel-metadata.json"
        )

    def job(self, **settings) -> Job:
        values = {**SETTINGS, "swarm": 2, "output": str(self.folder / "dataset"), **settings}
        return Job.from_values(values)

    def swarm(self, job: Job) -> Listed:
        accounts = hetzner.accounts(HCLOUD, endpoint=self.cloud.url)
        return Listed(job, accounts, self.said.append, pause=0.01)

    def session(self, *, own_swarm=False, **settings) -> KaggleSession:
        return KaggleSession(
            job=self.job(**settings), hours=9, source=self.source, own_swarm=own_swarm,
            pause=0.01, secrets=[HCLOUD, kaggle.TOKEN],
        )  # fmt: skip

    def __call__(self, **settings) -> Path:
        session = self.session(**settings)
        servers = self.swarm(session.job) if session.job.place.swarm else None
        return run_session(session, KaggleAccount(), servers, report=self.said.append)

    @property
    def servers(self) -> list[str]:
        return [server["name"] for server in self.cloud.servers()]

    @property
    def text(self) -> str:
        return "\n".join(self.said)


OUTPUTS = {f"dataset/metadata/metadata_{n}.parquet": b"%d" % n for n in range(9)} | {
    "dataset/shards/0.json": b"{}",
    "dataset/run/ledger.sqlite": b"",
    "dataset/run/parcels/big.tar": b"big",
    "__notebook__.ipynb": b"{}",
    "dataset/../../outside": b"no",
}
