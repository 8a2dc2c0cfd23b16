"""The page of `t2i web`."""
