"""``watch``: a job as a picture where there is a terminal, as lines where there is none, as a document for programs."""
