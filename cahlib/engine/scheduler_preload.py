"""Restrict a swarm's scheduler: it unpickles nothing, and obeys drivers only.

Dask imports this before it listens; if the restriction fails, the scheduler does not start.
"""

from cahlib.engine import peers, unpickling
from cahlib.engine.peers import dask_setup as dask_setup

unpickling.restrict()
peers.guard_scheduler()
