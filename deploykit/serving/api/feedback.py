"""Feedback: the client says what the label of an answer should have been, by the id of its request.

It is stored beside the record of that answer (see `privacy.records`), and `deploykit records` joins the two. Only
answers with one label can be corrected.
"""

from typing import Any

from pydantic import BaseModel, Field, field_validator

from deploykit.artifact import Manifest
from deploykit.methods import Frozen
from deploykit.serving.call import REQUEST_ID_PATTERN, Call
from deploykit.serving.privacy.records import Recorder
from deploykit.serving.problems import NOT_READY_DETAIL, Problem, retry_after_header

PATH = "/v1/feedback"


class FeedbackResponse(Frozen):
    """True if stored; false if the answer was not sampled for recording, or if another replica recorded it."""

    recorded: bool


def request_model(manifest: Manifest) -> type[BaseModel]:
    """Returns the type of the body, which accepts the labels of this model."""

    class FeedbackRequest(Frozen):
        """The label that would have been right."""

        id: str = Field(pattern=f"^{REQUEST_ID_PATTERN.pattern}$", description="the X-Request-ID of the answer")
        index: int = Field(default=0, ge=0, lt=manifest.serve.max_texts, description="which text of the request")
        label: str = Field(description="the right label", examples=[manifest.labels[0]])
        comment: str | None = Field(default=None, max_length=2000, description="stored with personal data masked")

        @field_validator("label")
        @classmethod
        def _exists(cls, label: str) -> str:
            """Checks that the model has the label."""
            if label not in manifest.labels:
                raise ValueError(f"the label must be one of the {len(manifest.labels)} of this model")
            return label

    return FeedbackRequest


def take(body: Any, call: Call, records: Recorder | None) -> FeedbackResponse:
    """Records feedback.

    Args:
        body: the feedback, of the type of `request_model`.
        call: the request that brings it.
        records: where answers are recorded; None if the service is not ready.

    Raises:
        Problem: 503, the service is not ready, or feedback arrives faster than it can be written.
    """
    if records is None:
        raise Problem(503, "not_ready", NOT_READY_DETAIL, headers=retry_after_header(10))
    if not records.has_recorded(call.client.name, body.id, body.index):
        return FeedbackResponse(recorded=False)
    if not records.record_feedback(call, body.id, body.index, body.label, body.comment):
        detail = "feedback comes faster than it can be written; send it again later"
        raise Problem(503, "busy", detail, headers=retry_after_header(1))
    return FeedbackResponse(recorded=True)
