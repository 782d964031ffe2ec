"""The environment of a run: variables, the file .env, and the settings in them."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cahlib.core.config import FORMER_NAMES, Job, rename_former, settings
from cahlib.core.errors import ConfigError
from cahlib.core.secret_store import STATE_VARIABLE


def read_environment() -> dict[str, str]:
    """Return the environment with what .env adds; raise ConfigError if that is not text."""
    from dotenv import dotenv_values

    try:
        told = {k: v for k, v in dotenv_values(".env").items() if v is not None} | os.environ
    except UnicodeDecodeError as error:
        raise ConfigError(".env is not a text file in UTF-8; save it as one.") from error
    if STATE_VARIABLE in told:  # not a setting of a job
        os.environ[STATE_VARIABLE] = told[STATE_VARIABLE]
    return told


def build_job(options: Mapping[str, str], environment: Mapping[str, str]) -> Job:
    """Return the Job of these options; CAH_* variables are used for those that are absent."""
    return Job.from_values({**environment_settings(environment), **rename_former(options)})


def environment_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that CAH_* variables give, as strings by name."""
    names = [*FORMER_NAMES, *(each.name for each in settings())]
    variables = ((name, f"CAH_{name.upper()}") for name in names)
    found = {name: environment[each] for name, each in variables if each in environment}
    return rename_former(found)
