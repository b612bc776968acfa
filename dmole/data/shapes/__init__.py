"""The shapes of items in common data formats, one file per family."""

from dmole.data.shapes.internvl import MetaPart, is_meta, meta_parts
from dmole.data.shapes.recognition import SHAPES, check_shape, recognise
from dmole.data.shapes.shape import Conversation, ImageRef, Shape
from dmole.data.shapes.vlmevalkit import is_table_row, named_rows, table_items
from dmole.data.shapes.webdataset import member_item

__all__ = [
    "SHAPES",
    "Conversation",
    "ImageRef",
    "MetaPart",
    "Shape",
    "check_shape",
    "is_meta",
    "is_table_row",
    "member_item",
    "meta_parts",
    "named_rows",
    "recognise",
    "table_items",
]
