"""Where jobs run: processes of this machine, or a Dask cluster anywhere."""
