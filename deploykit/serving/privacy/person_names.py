"""Finds names of people in texts with a spaCy model through Presidio, so that they can be masked.

Patterns cannot find names, and a model misses some: leaks become rarer, not impossible. The model may be any that
recognizes named entities, installed on the machine that serves or in a directory. Nothing is downloaded.
"""

import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, missing_extra_error
from deploykit.serving.settings import Settings

PERSON_ENTITY = "PERSON"  # as Presidio calls names of people
COMPONENTS = ("tok2vec", "transformer", "ner")  # of a spaCy model: those that named entities need
MAX_CALL_CHARACTERS = 50_000  # in one call of the model


class PersonNameFinder:
    """Finds the names of people.

    Args:
        model: an installed spaCy model, for example `en_core_web_sm`, or its directory.

    Raises:
        InputError: the model cannot be loaded, or does not recognize people.
    """

    def __init__(self, model: str) -> None:
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer

        nlp = _load(model)
        self._language: str = nlp.lang
        engine = SpacyNlpEngine(models=[{"lang_code": nlp.lang, "model_name": model}])
        engine.nlp = {nlp.lang: nlp}  # loaded already; its own `load` would download a missing model
        entities = engine.ner_model_configuration.model_to_presidio_entity_mapping
        if PERSON_ENTITY not in map(entities.get, nlp.get_pipe("ner").labels):
            raise InputError(f"the spaCy model {model} knows no names of people. Name another one in redact_names.")
        recognizer = SpacyRecognizer(supported_language=nlp.lang, supported_entities=[PERSON_ENTITY])
        registry = RecognizerRegistry(recognizers=[recognizer], supported_languages=[nlp.lang])
        self._analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[nlp.lang])
        self._lock = threading.Lock()  # spaCy does not promise to be thread-safe

    def __call__(self, text: str) -> list[tuple[int, int]]:
        """Returns the spans of names, ascending: offsets of the first character, and after the last."""
        spans: list[tuple[int, int]] = []
        for start, stop in _split(text):
            with self._lock:
                names = self._analyzer.analyze(text[start:stop], language=self._language, entities=[PERSON_ENTITY])
            spans += [(start + name.start, start + name.end) for name in names]
        return sorted(spans)


def require_model(settings: Settings) -> None:
    """Checks before a service starts that names can be found, if the recipe asks for it.

    Raises:
        MissingExtraError: Presidio is not installed.
        InputError: the model is not installed.
    """
    model = settings.redact_names
    if model is None:
        return
    if find_spec("presidio_analyzer") is None or find_spec("spacy") is None:
        raise missing_extra_error("the recipe's redact_names", "presidio-analyzer", "presidio")
    if not (Path(model).is_dir() or (model.isidentifier() and find_spec(model))):
        raise InputError(
            f"the recipe's redact_names wants the spaCy model {model!r}, which is not installed here."
            f" Add it with: python -m spacy download {model}, or pip install its wheel."
        )


def _load(model: str) -> Any:
    """Loads a spaCy model, with the components that named entities need."""
    import spacy

    try:
        nlp = spacy.load(model)
    except Exception as error:
        raise InputError(f"the spaCy model {model} cannot be loaded: {str(error).splitlines()[0]}") from error
    if "ner" not in nlp.pipe_names:
        raise InputError(f"the spaCy model {model} finds no names. Name one with named entities in redact_names.")
    nlp.select_pipes(enable=[name for name in nlp.pipe_names if name in COMPONENTS])
    return nlp


def _split(text: str) -> Iterator[tuple[int, int]]:
    """Yields the spans of pieces of a text that fit into one call; they end at spaces where possible."""
    start = 0
    while len(text) - start > MAX_CALL_CHARACTERS:
        space = text.rfind(" ", start + 1, start + MAX_CALL_CHARACTERS)
        stop = space if space > 0 else start + MAX_CALL_CHARACTERS
        yield start, stop
        start = stop
    yield start, len(text)
