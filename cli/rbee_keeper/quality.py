"""``models verify --quality``: what a conversion on a node costs against float32."""

from __future__ import annotations

import click

from rbee_keeper.failures import KeeperFailure
from rbee_keeper.narration import Narrator
from rbee_keeper.progress import ProgressDisplay
from rbee_keeper.results import ModelQuality
from rbee_keeper.session import Session

quality_option = click.option(
    "--quality",
    is_flag=True,
    help="Compare the predictions of MODEL as converted with those of float32; takes a few passes over it.",
)


def measure_quality(session: Session, model: str, node: str) -> ModelQuality:
    """Have the node compare MODEL's conversion with float32, showing its progress.

    Raises:
        the error that ends the stream; KeeperFailure when it breaks off.
    """
    from rbee.core.client import TransportFailure
    from rbee.core.errors import error_from_fields

    session.node = node
    queen = session.queen()
    progress = ProgressDisplay(session.terminal)
    narrator = Narrator(session.terminal, progress)
    result: ModelQuality | None = None
    try:
        with queen.stream("POST", "/v2/models/quality", body={"node": node, "model": model}) as stream:
            for event in stream:
                if event.is_done_marker:
                    break
                data = event.json()
                if event.name == "narration":
                    narrator.show(data)
                elif event.name == "progress":
                    progress.show(data)
                elif "error" in data:
                    progress.settle()
                    raise error_from_fields(data["error"])
                elif data.get("done"):
                    result = ModelQuality(str(data.get("model")), data["quality"])
    except TransportFailure as failure:
        raise queen.unreachable(failure.reason) from None
    except (ValueError, KeyError):
        message = "The stream holds an event that cannot be read"
        raise KeeperFailure(message, code="INTERNAL_ERROR") from None
    finally:
        progress.settle()
    if result is None:
        raise KeeperFailure("SSE stream closed unexpectedly", code="INTERNAL_ERROR")
    return result
