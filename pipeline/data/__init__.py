"""The data path: manifest → plan → read → transform → batch."""
