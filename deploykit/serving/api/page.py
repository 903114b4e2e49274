"""The web page at / and /ui, where people try the model, and `GET /v1/model`, which describes the model to it.

The files of the page are in `ui`. They contain nothing secret and need no key; what the page shows, it requests with
its visitor's key. It loads nothing from other sites, and its headers tell the browser to refuse that.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from deploykit import images, tasks
from deploykit.artifact import MODEL_CARD, Artifact
from deploykit.methods import Frozen
from deploykit.serving.api import explain
from deploykit.serving.api.protocols import input_names
from deploykit.serving.http.routes import Route
from deploykit.tasks import Task, TextInput

UI_FOLDER = Path(__file__).parent / "ui"
PAGE_PATH, MODEL_PATH = "/ui", "/v1/model"
HTML_TYPE, SCRIPT_TYPE, STYLE_TYPE = (f"text/{name}; charset=utf-8" for name in ("html", "javascript", "css"))
PAGE_FILES = {  # from path to file in the folder and content type
    PAGE_PATH: ("index.html", HTML_TYPE),
    f"{PAGE_PATH}/style.css": ("style.css", STYLE_TYPE),
    f"{PAGE_PATH}/app.js": ("app.js", SCRIPT_TYPE),
    f"{PAGE_PATH}/answers.js": ("answers.js", SCRIPT_TYPE),
    f"{PAGE_PATH}/card.js": ("card.js", SCRIPT_TYPE),
}
CONTENT_SECURITY_POLICY = (  # what a browser lets the page load and do
    *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:"),
    *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"),
)
PAGE_HEADERS = {  # of the responses with the files of the page
    "content-security-policy": "; ".join(CONTENT_SECURITY_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a browser must not mix files of two versions
}


class ModelInfo(Frozen):
    """The model, and the requests that it accepts."""

    name: str
    version: str
    task: str
    labels: tuple[str, ...]
    pair: bool = Field(description="whether an input is two texts")
    fields: tuple[str, ...] = Field(description="the fields of an input that hold a text or a file")
    files: tuple[str, ...] = Field(description="those that hold an image")
    max_file_bytes: int = Field(description="the largest file that is read")
    body: Literal["texts", "inputs"] = Field(description="the field of POST /v1/predict that holds the inputs")
    explains: bool = Field(description="whether there is POST /v1/explain")
    max_tokens: int = Field(description="how many tokens the model reads at once")
    max_windows: int = Field(description="in how many overlapping windows a longer text is read")
    abstain_below: float | None = Field(description="the probability below which answers say `abstained`; null: none")
    timeout_s: float = Field(description="the deadline of a request")
    redact: bool = Field(description="whether personal data is masked before the model reads a text")
    card: str = Field(description="the model card, in Markdown")


def page_routes(artifact: Artifact, task: Task) -> tuple[Route, ...]:
    """Returns the route that describes the model, and those of the page unless the recipe switches it off."""

    def render_model() -> bytes:
        return _model_info(artifact, task).model_dump_json().encode()

    model_route = Route(MODEL_PATH, scope="predict", render=render_model)
    if not artifact.manifest.serve.ui:
        return (model_route,)
    return model_route, *(
        Route(
            path,
            render=(UI_FOLDER / file).read_bytes,
            media_type=media_type,
            headers=PAGE_HEADERS,
            other_paths=("/",) if path == PAGE_PATH else (),
        )
        for path, (file, media_type) in PAGE_FILES.items()
    )


def _model_info(artifact: Artifact, task: Task) -> ModelInfo:
    """Describes the model to the page, from the manifest and the model card."""
    manifest, card = artifact.manifest, artifact.file(MODEL_CARD)
    return ModelInfo(
        name=manifest.name,
        version=manifest.version,
        task=manifest.task,
        labels=manifest.labels,
        pair=manifest.pair,
        fields=tuple(input_names(manifest, task)),
        files=task.Input.FILES,
        max_file_bytes=images.MAX_BYTES,
        body="texts" if task.Input is TextInput else "inputs",
        explains=bool(explain.explain_protocols(manifest, task)),
        max_tokens=manifest.max_tokens,
        max_windows=getattr(tasks.spec_of(manifest).options, "max_windows", 1),
        abstain_below=getattr(tasks.spec_of(manifest).options, "abstain_below", None),
        timeout_s=manifest.serve.timeout_s,
        redact=manifest.serve.redact,
        card=card.read_text(encoding="utf-8") if card.is_file() else "",
    )
