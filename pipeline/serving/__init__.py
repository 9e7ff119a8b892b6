"""The online service: JSON requests in, scores of one or several model versions out."""
