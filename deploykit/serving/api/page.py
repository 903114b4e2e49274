"""The page at / and /ui, on which people try the model, and `GET /v1/model`, which tells it what the model is.

Its files lie beside this one, in `ui`. They hold nothing secret, so everybody gets them; all that the page shows, it
asks for with its visitor's key. Nothing of it is loaded from elsewhere, and the browser is told to refuse what is.
"""

from pathlib import Path

from pydantic import Field

from deploykit.artifact import MODEL_CARD, Artifact
from deploykit.serving.api import explain
from deploykit.serving.api.schemas import Wire
from deploykit.serving.http.routes import Route
from deploykit.tasks import Task

FOLDER = Path(__file__).parent / "ui"
PATH, MODEL = "/ui", "/v1/model"
SCRIPT, STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
FILES = {  # path: the file in the folder, its content type
    PATH: ("index.html", "text/html; charset=utf-8"),
    f"{PATH}/style.css": ("style.css", STYLE),
    f"{PATH}/app.js": ("app.js", SCRIPT),
    f"{PATH}/answers.js": ("answers.js", SCRIPT),
    f"{PATH}/card.js": ("card.js", SCRIPT),
}
ALSO = {PATH: ("/",)}  # what the page loads has addresses that are the same from there
POLICY = (
    *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:"),
    *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"),
)
HEADERS = {
    "content-security-policy": "; ".join(POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a browser that kept one file of an older page would mix the two
}


class ModelInfo(Wire):
    """What a model is and what may be asked of it."""

    name: str
    version: str
    task: str
    labels: tuple[str, ...]
    pair: bool = Field(description="whether an input is two texts")
    explains: bool = Field(description="whether there is POST /v1/explain")
    max_tokens: int = Field(description="what the model reads at once")
    max_windows: int = Field(description="in how many overlapping parts a longer text is read")
    timeout_s: float = Field(description="the deadline of a request")
    redact: bool = Field(description="whether personal data is masked before the model reads a text")
    card: str = Field(description="the model card, in Markdown")


def pages(artifact: Artifact, task: Task) -> tuple[Route, ...]:
    """Lists the routes: what tells of the model, and the page's files unless the recipe switches them off.

    Args:
        artifact: the package.
        task: of its model.
    """
    manifest = artifact.manifest

    def model() -> bytes:
        card = artifact.file(MODEL_CARD)
        found = ModelInfo(
            name=manifest.name,
            version=manifest.version,
            task=manifest.task,
            labels=manifest.labels,
            pair=manifest.pair,
            explains=bool(explain.explain(manifest, task)),
            max_tokens=manifest.max_tokens,
            max_windows=manifest.serve.max_windows,
            timeout_s=manifest.serve.timeout_s,
            redact=manifest.serve.redact,
            card=card.read_text(encoding="utf-8") if card.is_file() else "",
        )
        return found.model_dump_json().encode()

    about = Route(MODEL, scope="predict", page=model)
    if not manifest.serve.ui:
        return (about,)
    return about, *(
        Route(path, page=(FOLDER / name).read_bytes, media=media, headers=HEADERS, also=ALSO.get(path, ()))
        for path, (name, media) in FILES.items()
    )
