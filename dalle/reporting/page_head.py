"""The head of our pages, which lies in `dalle.outputs`: `data` too writes a page, and stands below this room."""

from dalle.outputs.page_head import head, replace_text

__all__ = ["head", "replace_text"]
