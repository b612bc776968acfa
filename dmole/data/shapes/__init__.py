"""The shapes in which people have conversations over images, one file a family."""

from dmole.data.shapes.recognition import SHAPES, recognise
from dmole.data.shapes.shape import Conversation, ImageRef, Role, Shape

__all__ = ["SHAPES", "Conversation", "ImageRef", "Role", "Shape", "recognise"]
