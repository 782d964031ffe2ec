"""The environment of a run: variables, the file .env, and the settings they hold."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cahlib.core.config import Job, settings
from cahlib.core.errors import ConfigError
from cahlib.core.secret_store import STATE_VARIABLE


def environment() -> dict[str, str]:
    """Return the environment with what .env adds; raise ConfigError if that is not text."""
    from dotenv import dotenv_values

    try:
        told = {k: v for k, v in dotenv_values(".env").items() if v is not None} | os.environ
    except UnicodeDecodeError as error:
        raise ConfigError(".env is not a text in UTF-8; store it as one.") from error
    if STATE_VARIABLE in told:  # it is no setting of a job: where secrets lie is told to nobody
        os.environ[STATE_VARIABLE] = told[STATE_VARIABLE]
    return told


def job_from(options: Mapping[str, str], environment: Mapping[str, str]) -> Job:
    """Return the Job of these options; the variables CAH_* stand for those that are absent."""
    names = {setting.name for setting in settings()}
    inherited = {
        name: environment[variable]
        for name in names
        if (variable := f"CAH_{name.upper()}") in environment
    }
    return Job.from_values({**inherited, **options})
