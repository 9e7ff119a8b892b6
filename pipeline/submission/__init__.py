"""Jobs on a Ray cluster: what is sent there, how it is followed, stopped, and how it ended."""
