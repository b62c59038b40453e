"""Streams of batches, each a pure function of the step."""

from typing import TYPE_CHECKING

from curricle.lazy import public_names

if TYPE_CHECKING:
    from curricle.data.batch import Batch as Batch
    from curricle.data.dataloaders import LoaderStream as LoaderStream
    from curricle.data.dataloaders import stream as stream
    from curricle.data.encoding import Encoded as Encoded
    from curricle.data.encoding import Encoding as Encoding
    from curricle.data.encoding import encode as encode
    from curricle.data.examples import ExampleStream as ExampleStream
    from curricle.data.examples import open_table as open_table
    from curricle.data.streams import Stream as Stream
else:
    __all__, __getattr__, __dir__ = public_names(
        __name__,
        {
            "dataloaders": ("LoaderStream", "stream"),
            "batch": ("Batch",),
            "streams": ("Stream",),
            "encoding": ("Encoded", "Encoding", "encode"),
            "examples": ("ExampleStream", "open_table"),
        },
    )
