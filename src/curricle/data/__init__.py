"""Streams of batches, each a pure function of the step."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.data.batch import Batch as Batch
    from curricle.data.dataloaders import LoaderStream as LoaderStream
    from curricle.data.dataloaders import stream as stream
    from curricle.data.json_lines import read_json_lines as read_json_lines
    from curricle.data.streams import Stream as Stream
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "dataloaders": ("LoaderStream", "stream"),
            "batch": ("Batch",),
            "json_lines": ("read_json_lines",),
            "streams": ("Stream",),
        },
    )
