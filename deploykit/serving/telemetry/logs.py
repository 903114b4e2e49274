"""The log of a service process: one JSON object on each line, one line for each request, and never a text.

Of a path only the label of its route is logged, so that clients cannot write into the log.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from deploykit.serving.call import Call

NEVER_READY = "this service will not become ready"  # `launch` looks for this text in the log

request_logger = logging.getLogger("deploykit.access")


class JsonLineFormatter(logging.Formatter):
    """Renders a log record as one line of JSON; if the message is a dictionary, its entries become fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a log record."""
        content: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        content |= record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


def configure() -> None:
    """Sends the log of deploykit to standard output, as lines of JSON."""
    logger = logging.getLogger("deploykit")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLineFormatter())
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log_request(call: Call, route: str, status: int, sent_bytes: int, seconds: float) -> None:
    """Logs one request.

    Args:
        call: the request.
        route: label of its route.
        status: of the response.
        sent_bytes: of the response's body.
        seconds: from the request to the end of the response.
    """
    request_logger.info(
        {
            "request": call.id,
            **({"trace": call.trace_id} if call.trace_id else {}),
            "client": call.client.name,
            "key": call.client.key_id,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "tokenize_ms": round(call.tokenize_s * 1000, 2),
            "queue_ms": round(call.queue_s * 1000, 2),
            "inference_ms": round(call.inference_s * 1000, 2),
            "texts": call.input_count,
            "tokens": call.token_count,
            "bytes": sent_bytes,
        }
    )
