"""Preloaded by the workers and nannies of a swarm: they work for its drivers alone.

Dask imports it before they listen.
"""

from cahlib.engine import peers
from cahlib.engine.peers import dask_setup as dask_setup

peers.guard_worker()
