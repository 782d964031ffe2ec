"""The errors a run can end with; each message says in one sentence what happened and what to do.

    CahError
    ├── ConfigError    the user asked for something that cannot be; nothing was started
    ├── ShardError     one shard is lost for now; it is tried again, and reported
    └── RunError       the run cannot go on; what is done stays done

A candidate that is lost is not an error but a `cahlib.records.Reason` in the tally. Any other
exception is a bug and is not caught.
"""


class CahError(Exception):
    """What cahlib raises on purpose; its text is meant for people."""

    #: what the command `cah` exits with
    exit_code = 1


class ConfigError(CahError):
    """A setting, a file or a place that the user named cannot be used."""

    exit_code = 2


class ShardError(CahError):
    """A shard could not be read, or its parcel could not be written."""


class RunError(CahError):
    """The run cannot go on."""


def no_space(place: object) -> RunError:
    """What ends a run where a disk is full."""
    return RunError(f"No space is left for {place}: make some, then give the same command again.")


#: Libraries that not every place needs, by the extra that brings them.
_EXTRAS = {
    "gpu": {
        "torch",
        "torchvision",
        "open_clip",
        "safetensors",
        "numpy",
        "pyarrow",
        "google_crc32c",
    },
    "swarm": {"hcloud", "paramiko", "cryptography"},
    "kaggle": {"kaggle", "kagglesdk", "requests"},
    "tracker": {"fastapi", "uvicorn", "jinja2", "multipart", "alembic", "psycopg"},
}


def missing(error: ModuleNotFoundError) -> ConfigError:
    """What to type for a library that is not installed; a module that no extra brings is a bug."""
    library = (error.name or "").partition(".")[0]
    for extra, libraries in _EXTRAS.items():
        if library in libraries:
            return ConfigError(
                f"{library} is not installed; type: pip install 'cahlib[{extra}]' "
                f"(or, where its source lies, pip install '.[{extra}]')."
            )
    raise error
