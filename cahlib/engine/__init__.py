"""Engines, on which jobs run: processes of this machine, or a Dask cluster anywhere."""
