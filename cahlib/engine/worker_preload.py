"""Restrict a swarm's workers and nannies: they work for its drivers only.

Dask imports this before they listen.
"""

from cahlib.engine import peers
from cahlib.engine.peers import dask_setup as dask_setup

peers.guard_worker()
