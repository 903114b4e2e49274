"""Names of people in texts, found by a spaCy model through Presidio, to be masked with the rest of personal data.

Patterns cannot find names and a model misses some: this makes a leak rarer and not impossible. The model is any with
named entities that is installed on the machine that serves, or a directory; nothing is downloaded. Of its parts only
the recognition of names is run.
"""

import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploykit.errors import InputError, extra_missing
from deploykit.serving.settings import Settings

ENTITY = "PERSON"
NEEDED = ("tok2vec", "transformer", "ner")  # of what a model is made of
MOST_CHARACTERS = 50_000  # that are looked at together

Spans = list[tuple[int, int]]


class Names:
    """Finds the names of people.

    Args:
        model: an installed spaCy model, for example `en_core_web_sm`, or its directory.

    Raises:
        InputError: the model cannot be loaded, or knows no people.
    """

    def __init__(self, model: str) -> None:
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer

        nlp = _loaded(model)
        self._language: str = nlp.lang
        engine = SpacyNlpEngine(models=[{"lang_code": nlp.lang, "model_name": model}])
        engine.nlp = {nlp.lang: nlp}  # what is loaded already; its own `load` would download what is missing
        known = {label for label in nlp.get_pipe("ner").labels if _is_person(engine, label)}
        if not known:
            raise InputError(f"the spaCy model {model} knows no names of people. Name another one in redact_names.")
        recognizer = SpacyRecognizer(supported_language=nlp.lang, supported_entities=[ENTITY])
        registry = RecognizerRegistry(recognizers=[recognizer], supported_languages=[nlp.lang])
        self._analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[nlp.lang])
        self._turn = threading.Lock()  # spaCy promises nothing to threads

    def __call__(self, text: str) -> Spans:
        """Returns where names stand, as offsets of their first character and after their last."""
        found: Spans = []
        for start, stop in _parts(text):
            with self._turn:
                names = self._analyzer.analyze(text[start:stop], language=self._language, entities=[ENTITY])
            found += [(start + name.start, start + name.end) for name in names]
        return sorted(found)


def require_model(settings: Settings) -> None:
    """Makes sure that names can be found where that is asked for, before a service starts.

    Raises:
        MissingExtraError: Presidio is not installed.
        InputError: the model is not installed.
    """
    model = settings.redact_names
    if model is None:
        return
    if find_spec("presidio_analyzer") is None or find_spec("spacy") is None:
        raise extra_missing("the recipe's redact_names", "presidio-analyzer", "presidio")
    if not (Path(model).is_dir() or (model.isidentifier() and find_spec(model))):
        raise InputError(
            f"the recipe's redact_names wants the spaCy model {model!r}, which is not installed here."
            f" Add it with: python -m spacy download {model}, or pip install its wheel."
        )


def _loaded(model: str) -> Any:
    import spacy

    try:
        nlp = spacy.load(model)
    except Exception as error:
        raise InputError(f"the spaCy model {model} cannot be loaded: {str(error).splitlines()[0]}") from error
    if "ner" not in nlp.pipe_names:
        raise InputError(f"the spaCy model {model} finds no names. Name one with named entities in redact_names.")
    nlp.select_pipes(enable=[name for name in nlp.pipe_names if name in NEEDED])
    return nlp


def _is_person(engine: Any, label: str) -> bool:
    return bool(engine.ner_model_configuration.model_to_presidio_entity_mapping.get(label) == ENTITY)


def _parts(text: str) -> Spans:
    """Cuts a long text at spaces, so that no name is cut."""
    found: Spans = []
    start = 0
    while len(text) - start > MOST_CHARACTERS:
        space = text.rfind(" ", start + 1, start + MOST_CHARACTERS)
        stop = space if space > 0 else start + MOST_CHARACTERS
        found.append((start, stop))
        start = stop
    return [*found, (start, len(text))]
