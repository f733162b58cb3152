"""``top``: the picture is a pure function of what the node said and of the state of the view; a painter brings it to the terminal."""
