"""The job of a dataset that exists: the settings that made it, as its run or dataset.json has them.

A dataset that was copied without its run directory has its settings too, but no paths: of what was
read its name is enough, while lists, heads and models have to be given again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahlib.core.config import Job, Output, settings
from cahlib.core.errors import ConfigError, MissingSetting
from cahlib.core.fingerprint import portable_value, restored_value, same_value
from cahlib.core.settings import Setting
from cahlib.core.wording import verb
from cahlib.dataset.description import find_description, stored_job
from cahlib.dataset.manifest import no_dataset_error, require_dataset
from cahlib.run.environment import environment_settings


def dataset_job(place: str, given: Mapping[str, str], environment: Mapping[str, str]) -> Job:
    """Return the job that goes on with the dataset in a folder or at a URL.

    ``given`` are settings as typed; variables of the environment are used for those that may change
    between launches, and for files. Raise ConfigError if the dataset does not have its settings.
    """
    output = Output(output=place)
    before = stored_job(output.folder)
    if before and before.output.url and not output.url:
        if before.output.folder != output.folder:
            raise ConfigError(
                f"{place} is the copy of a dataset that is uploaded as it grows; give its URL, in "
                "the folder where it was made."
            )
        output = before.output
    said = find_description(output.url or output.folder)
    made = said.settings if said and said.committed else None
    if made is None and before is None:
        require_dataset(place)  # raises as well if a URL cannot be reached
        raise no_dataset_error(place)
    typed = {**environment_settings(environment), **given}
    typed.pop("tracker", None)
    values: dict[str, Any] = {"output": output.output}
    for each in settings():
        if each.name == "output":
            continue
        is_open = each.option.free or each.option.file
        if each.name in (typed if is_open else given):
            values[each.name] = typed[each.name]
        elif each.option.free:
            # where to scrape is chosen anew; whether a tracker assigns the shards is not
            if before and (each.group != "place" or each.name == "tracker"):
                values[each.name] = each.of(before)
        else:
            values[each.name] = _made_with(each, made, before)
    return Job.from_values({name: each for name, each in values.items() if each is not None})


def _made_with(setting: Setting, made: Mapping[str, Any] | None, before: Job | None) -> Any:
    """Return the value of a setting that decides what is in the dataset."""
    own = setting.of(before) if before else setting.default
    if made is None or setting.name not in made:  # of a later version
        return own
    value = made[setting.name]
    if own and same_value(portable_value(setting, own), value):
        return own
    if setting.option.file and (names := _file_names(setting, value)):
        listed = ", ".join(names)
        paths = ", ".join([own] if isinstance(own, str) else own)
        lacking = (
            f"{listed}, which {verb(len(names), 'is', 'are')} missing or changed at {paths}; put "
            "back what was there, or give it"
            if paths
            else f"{listed}, whose path is not known here; give it"
        )
        raise MissingSetting(
            f"{setting.name}: the dataset was made with {lacking} with {setting.flag}."
        )
    return restored_value(value)


def _file_names(setting: Setting, value: Any) -> list[str]:
    """Return the names of the files in a published value."""
    every = value if isinstance(value, list) else [value]
    if setting.option.grows:
        return [str(each) for each in every]
    return [str(each["name"]) for each in every if isinstance(each, Mapping)]
