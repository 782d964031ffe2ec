"""Preloaded by the workers and nannies of a swarm: they work for its drivers alone.

Dask imports it before they listen.
"""

from cahlib.swarm import peers
from cahlib.swarm.peers import dask_setup as dask_setup

peers.guard_worker()
