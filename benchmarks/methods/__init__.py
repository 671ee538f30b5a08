"""Methods: a regulariser, an importance and a selection, by name (`registry`)."""
