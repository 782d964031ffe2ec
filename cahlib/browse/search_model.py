"""The model by which a dataset is searched: one whose vectors it has, loaded when first needed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from cahlib.browse.nearest import Vector
from cahlib.core.config import NO_MODEL, Judge
from cahlib.core.errors import ConfigError, missing_library_error
from cahlib.dataset.description import find_description, stored_job
from cahlib.dataset.storage.files import files_at
from cahlib.model.model_source import find_source, named_judge, typed_judge
from cahlib.model.scorer import check_model_files

if TYPE_CHECKING:
    from cahlib.model.clip import Clip


class SearchModel:
    """The model of a dataset, to turn words and pictures into vectors. Thread-safe."""

    def __init__(self, place: str, model: str, typed: str = "", pretrained: str = "") -> None:
        """Take the name of the vectors' model; ``typed`` says where it is, if not known."""
        self._place, self._model = place, model
        self._typed, self._pretrained = typed, pretrained
        self._clip: Clip | None = None
        self._lock = threading.Lock()

    def fault(self) -> str:
        """Return why there can be no search by words, a sentence, or ""; nothing is loaded."""
        if not self._model or self._model == NO_MODEL:
            return "No model scored this dataset, so it cannot be searched by words."
        try:
            judge = self._judge()
            check_model_files(judge)
            found = find_source(judge).name
        except ModuleNotFoundError as error:
            return f"For a search by words, {missing_library_error(error, 'gpu')}"
        except ConfigError as error:
            return (
                f"For a search by words, the model {self._model} is needed: give its folder or "
                f"name with --model ({error})"
            )
        if found != self._model:
            return (
                f"{found} did not score this dataset; for a search by words, name {self._model} "
                "with --model, or add its vectors by `cah score` with --embeddings."
            )
        return ""

    def words(self, text: str) -> Vector:
        """Return the vector of a text; raise ConfigError without the model."""
        return np.asarray(self._loaded().embed_texts([text])[0], np.float32)

    def picture(self, data: bytes) -> Vector:
        """Return the vector of a picture; raise ConfigError if it is none, or without the model."""
        clip = self._loaded()
        pixels = clip.prepare(data)
        if pixels is None:
            raise ConfigError("picture: the file is damaged; choose another one.")
        return np.asarray(clip.embed([pixels], [""])[0][0], np.float32)

    def _loaded(self) -> Clip:
        with self._lock:
            if self._clip is None:
                if fault := self.fault():
                    raise ConfigError(fault)
                from cahlib.model.clip import load_clip

                self._clip = load_clip(self._judge())
            return self._clip

    def _judge(self) -> Judge:
        if self._typed and (self._pretrained or self._typed != self._model):
            return typed_judge(self._typed, self._pretrained)
        folder = files_at(self._place).folder
        if job := stored_job(folder) if folder else None:
            own = job.judge
        else:
            described = find_description(self._place)
            own = _described(described.settings or {} if described else {})
        if self._typed and find_source(own).name != self._typed:
            return named_judge("model", self._typed)
        return own


def _described(settings: Mapping[str, Any]) -> Judge:
    """Return the model as dataset.json has it, where a file is known by its name alone."""
    model, pretrained = (
        str(each["name"] if isinstance(each, Mapping) else each or "")
        for each in (settings.get("model"), settings.get("pretrained"))
    )
    if model:
        return Judge(model=model, pretrained=pretrained, threshold=0)
    preset = settings.get("preset")
    return Judge(preset=preset) if isinstance(preset, str) else Judge()
