"""Preloaded by the scheduler of a swarm: it unpickles nothing, and does what drivers ask alone.

Dask imports it before it listens; if it cannot be restricted, it does not start.
"""

from cahlib.engine import peers, unpickling
from cahlib.engine.peers import dask_setup as dask_setup

unpickling.restrict()
peers.guard_scheduler()
